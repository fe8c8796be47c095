"""The signature of a death: its text, its id, and what it rests on."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from collector.model import (
    Cause,
    CrashSite,
    KilledBy,
    Killer,
    SignatureBasis,
    SnapshotFacts,
    UnitState,
)
from collector.signature.compose import id_of, signed
from tests.unit.signature_samples import ABORT, BUILD, ENTRY, death, own

STACK = [*own("count_request", "serve_request"), *ENTRY]
SITE = CrashSite(build_id=BUILD, offset=0x11F5)


def text(**facts: Any) -> str | None:
    made = death(**facts).signature
    assert made is not None
    assert made.id == id_of(made.text or "")
    return made.text


def test_the_text_is_the_kind_of_death_and_where_it_happened() -> None:
    assert text(frames=STACK) == "SIGSEGV near-null | count_request"
    assert death(frames=STACK).signature == death(2, frames=STACK, pid=99).signature


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        # a wild pointer is one kind, wherever it happens to point to
        ({"si_addr": 0x7F0000000000}, "SIGSEGV bad-pointer"),
        ({"si_addr": 0, "si_code": 0x80}, "SIGSEGV bad-pointer"),
        ({"si_addr": 0x7F0000000000, "si_code": 2}, "SIGSEGV bad-pointer"),
        ({"signal": 7, "signal_name": "SIGBUS", "si_code": 2}, "SIGBUS past-end-of-file"),
        ({"signal": 8, "signal_name": "SIGFPE"}, "SIGFPE division"),
        ({"signal": 6, "signal_name": "SIGABRT", "si_code": -6}, "SIGABRT abort"),
        ({"signal": 11, "si_code": -6}, "SIGSEGV raised"),
        ({"signal": 11, "si_code": None}, "SIGSEGV unknown"),
        ({"signal": 31, "signal_name": "SIGSYS"}, "SIGSYS seccomp"),
    ],
)
def test_kinds(facts: dict[str, Any], kind: str) -> None:
    assert text(frames=STACK, **facts) == f"{kind} | count_request"


@pytest.mark.parametrize(
    ("facts", "whole"),
    [
        ({"cause": Cause.KILLED, "signal_name": "SIGKILL", "signal": 9}, "SIGKILL killed | shop"),
        ({"cause": Cause.OOM, "signal_name": "SIGKILL"}, "SIGKILL out-of-memory | shop"),
        ({"cause": Cause.EXIT, "signal": None, "exit_code": 3}, "exit 3 | shop"),
        (
            {"signal_name": "SIGXCPU", "killer": Killer(by=KilledBy.CPU_LIMIT)},
            "SIGXCPU cpu-limit | shop",
        ),
        (
            {
                "cause": Cause.KILLED,
                "signal_name": "SIGABRT",
                "killer": Killer(
                    by=KilledBy.PROCESS,
                    unit_state=UnitState(result="watchdog", active="failed", sub="failed"),
                ),
            },
            "SIGABRT watchdog | shop",
        ),
    ],
)  # fmt: skip
def test_where_others_ended_it_the_program_stands_for_the_stack(
    facts: dict[str, Any], whole: str
) -> None:
    # GIVEN a process that somebody ended while it was anywhere THEN that place does not count
    made = death(frames=STACK, **facts).signature
    assert made is not None
    assert (made.text, made.basis) == (whole, SignatureBasis.PROGRAM)


def test_a_recursion_counts_only_where_it_used_up_the_stack() -> None:
    deep = own("parse_item", "parse_list") * 100
    # GIVEN the guard page below a stack was hit THEN it is the recursion
    assert text(frames=deep, si_addr=0x7FFE00000000) == (
        "SIGSEGV stack-overflow | parse_item | parse_list"
    )
    # BUT a null pointer somewhere deep in it is the bug of that function
    assert text(frames=deep) == "SIGSEGV near-null | parse_item"


def test_a_death_that_was_not_unwound_is_named_by_its_place() -> None:
    # GIVEN a fault of which only the place is known
    alone = death(frames=None, site=SITE)
    assert alone.signature is not None
    assert alone.signature.text == "SIGSEGV near-null | shop+3f2a91bc+0x11f5"
    assert alone.signature.basis is SignatureBasis.PLACE
    # WHEN one at the same place was unwound before THEN it is the same bug, and says on what ground
    known = death(2, frames=STACK, site=SITE).signature
    bare = replace(alone, signature=None)
    again = signed(bare, like=known).signature
    assert known is not None
    assert again is not None
    assert (again.id, again.fine, again.basis) == (known.id, known.fine, SignatureBasis.PLACE)
    # AND where not even the place is known, or it is that of raise(3), the program is all there is
    assert text(frames=None) == "SIGSEGV near-null | shop"
    assert text(frames=None, site=SITE, signal_name="SIGABRT", signal=6, si_code=-6) == (
        "SIGABRT abort | shop"
    )


def test_an_abort_begins_below_it() -> None:
    facts = {"signal": 6, "signal_name": "SIGABRT", "si_code": -6}
    assert text(frames=[*ABORT, *own("check_invariant"), *ENTRY], **facts) == (
        "SIGABRT abort | check_invariant"
    )


def test_names_that_are_hostile_are_bounded_and_stay_what_they_are() -> None:
    # GIVEN names of any size, and paths that are no UTF-8
    assert len(text(frames=own("f" * 5000)) or "") <= 400
    assert text(frames=None, exe="/tmp/x\udcff (deleted)") == "SIGSEGV near-null | x\\udcff"


def test_a_snapshot_is_no_death() -> None:
    facts = SnapshotFacts(mode="threads", method="iterator", why="x", consistent=True)
    assert death(cause=Cause.SNAPSHOT, snapshot=facts).signature is None
