"""Less and less of a bug that is known: of its first death, of the next ones, of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from collector.errors import PolicyError
from collector.model import Capture, CrashSite, FatalSignal, Signature, StackPage
from collector.policy.collect import Place, Places
from collector.policy.load import loads
from collector.policy.match import decide
from collector.policy.site import caller_in, offset_of
from collector.policy.types import Action, Collect, Facts
from tests.unit.event_samples import fatal

SITE = CrashSite(build_id="ab" * 20, offset=0x1234)
PLACE = Place(uid=0, exe="/bin/shop", version=(4096, 7), signal=11, site=SITE)
COLLECT = Collect(times=2, period=100.0)
FULL, STACKS, RECORD = Capture.FULL, Capture.STACKS, Capture.RECORD


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def died(places: Places, place: Place = PLACE, collect: Collect = COLLECT) -> Capture:
    """What is captured of one more death there."""
    stage = places.stage(collect, place)
    places.captured(place)
    return stage.capture


def test_the_first_whole_the_next_ones_less_the_rest_hardly_at_all() -> None:
    clock = Clock()
    places = Places(clock)
    assert [died(places) for _ in range(5)] == [FULL, STACKS, STACKS, RECORD, RECORD]
    # WHEN the period is over, counted from the first THEN it begins anew
    clock.now += 99
    assert died(places) is RECORD
    clock.now += 1
    assert [died(places), died(places)] == [FULL, STACKS]


def test_what_was_not_captured_as_it_should_does_not_count() -> None:
    # GIVEN a first death that a limit made smaller THEN the next one is the first still
    places = Places(Clock())
    assert [places.stage(COLLECT, PLACE).capture for _ in range(2)] == [FULL, FULL]
    # AND a reason is given from the second on
    assert places.stage(COLLECT, PLACE).why is None
    places.captured(PLACE)
    assert places.stage(COLLECT, PLACE).why == "collect: death 2 at this place within 100s"
    for _ in range(2):
        places.captured(PLACE)
    why = "collect: 3 deaths at this place within 100s were captured already"
    assert places.stage(COLLECT, PLACE).why == why


@pytest.mark.parametrize(
    "other",
    [
        {"version": (4096, 8)},  # a new build, by its time
        {"version": (4097, 7)},
        {"site": CrashSite(build_id="cd" * 20, offset=0x1234)},  # of a library
        {"site": CrashSite(build_id="ab" * 20, offset=0x1238)},
        {"caller": 0x99},
        {"signal": 7},
        {"exe": "/bin/other"},
        {"uid": 1000},
    ],
)
def test_another_build_or_place_is_new(other: dict[str, Any]) -> None:
    places = Places(Clock())
    died(places)
    assert died(places, replace(PLACE, **other)) is FULL
    assert died(places) is STACKS


def test_the_signature_of_a_place_is_that_of_the_last_stack() -> None:
    places = Places(Clock(), most=2)
    known = Signature(id="0" * 12, frames=("count_request",))
    assert places.signature(PLACE) is None
    places.learn(PLACE, known)
    assert places.signature(PLACE) == known
    # BUT where the place is not known nothing is taken for the same bug
    vague = replace(PLACE, site=None)
    places.learn(vague, known)
    assert places.signature(vague) is None
    # AND no more places are kept than there may be
    places.learn(replace(PLACE, uid=7), known)
    places.learn(replace(PLACE, uid=8), known)
    assert places.signature(PLACE) is None


def test_who_called_into_a_library_is_on_the_stack() -> None:
    def fault(ip: int, *words: int) -> FatalSignal:
        regs = list(fatal().regs)
        regs[16], regs[19] = ip, 0x8000  # rip and rsp in struct user_regs_struct
        data = b"".join(word.to_bytes(8, "little") for word in words)
        return fatal(regs=tuple(regs), stack=(StackPage(address=0x8000, data=data),))

    own = [(0x400000, 0x401000, 0x1000)]
    # GIVEN a fault in a library, with a number and two return addresses on the stack
    assert caller_in(fault(0x7F0000, 5, 0x400123, 0x400456), own) == 0x1123
    # THEN a fault in the program's own code has no such caller, and neither has one without
    assert caller_in(fault(0x400010, 0x400123), own) is None
    assert caller_in(fault(0x7F0000, 5), own) is None
    assert caller_in(fault(0x7F0000, 0x400123), []) is None
    assert caller_in(fatal(regs=()), own) is None


def test_where_the_kernel_tells_no_site_the_mappings_do() -> None:
    regs = list(fatal().regs)
    regs[16] = 0x400123  # rip in struct user_regs_struct
    death = fatal(regs=tuple(regs))
    code = [(0x300000, 0x301000, 0), (0x400000, 0x401000, 0x1000)]
    # GIVEN a fault in code that is mapped THEN it is an offset in the file, the same in each run
    assert offset_of(death, code) == (0x1123,)
    # AND none where nothing is mapped, or where it was no fault
    assert offset_of(death, code[:1]) is None
    assert offset_of(replace(death, si_code=-6), code) is None
    assert offset_of(fatal(regs=()), code) is None


def action(text: str, facts: Facts | None = None) -> Action:
    return decide(loads(text, "f"), facts or Facts(cause="signal")).action  # type: ignore[arg-type]


def test_collect_in_a_file() -> None:
    plain = action("defaults: {collect: {times: 3, period: 2h}}")
    assert plain.collect == Collect(times=3, period=7200.0)
    assert plain.capture is FULL
    # AND a rule changes single keys, or says one amount for all deaths, or goes back to the default
    rule = "rules: [{name: a, match: {cause: signal}, %s}]"
    base = "defaults: {collect: {first: stacks, times: 3}}\n"
    inherited = action(base + rule % "release: instant")
    assert (inherited.collect, inherited.capture) == (Collect(first=STACKS, times=3), STACKS)
    changed = action(base + rule % "collect: {times: 9}")
    assert changed.collect == Collect(first=STACKS, times=9)
    assert action(base + rule % "capture: threads").collect is None
    assert action(base + rule % "collect: none").collect is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "defaults: {capture: full, collect: {times: 1}}",
            "f:1: defaults.collect: give either capture or collect, not both",
        ),
        (
            "rules:\n- name: a\n  match: {uid: 1}\n  capture: full\n  collect: {first: stacks}",
            "f:5: rules[0].collect: give either capture or collect, not both",
        ),
        (
            "defaults: {collect: full}",
            "f:1: defaults.collect: expected keys (first, then, times, after, period), or none, "
            'not "full"',
        ),
        (
            "defaults: {collect: {after: none}}",
            'f:1: defaults.collect.after: "none" is not one of full, stacks, threads, record',
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        loads(text, "f")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'signature: {sentinels: ["*"]}',
            'f:1: signature.sentinels: "*": expected a glob of function names such as '
            '"my_fatal*", at most 200 characters; all functions are none',
        ),
        (
            "signature: {frames: 5}",
            "f:1: signature.frames: expected a number of functions from 1 to 4, not 5",
        ),
        (
            f"signature: {{common: [{', '.join(['x'] * 101)}]}}",
            "f:1: signature.common: expected at most 100 globs, not 101",
        ),
    ],
)
def test_rules_of_signatures_in_a_file(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        loads(text, "f")
    assert str(error.value) == message
