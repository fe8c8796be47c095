"""Threads with stacks: the layout is the compiler's, and what is damaged is refused."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from collector.arch.x86_64 import PAGE
from collector.errors import ProbeError
from collector.linux.perf_clock import parse_cpus
from collector.probe import stacks
from collector.probe.stacks import (
    CAUGHT,
    LIVE,
    SWITCHES,
    Listed,
    ThreadStack,
    check_size,
    decode_caught,
    decode_listed,
    extents,
    pages_for,
    with_caught,
)
from tests.unit.compiler import values_of

BPF = Path(__file__).resolve().parents[2] / "bpf"
SP = 0x7FFF_0000_1F80
REGS = (*range(100, 119), SP, *range(120, 127))
STACK = bytes(range(256)) * 2

EXPECTED = {
    "sizeof(struct cw_live)": LIVE.size,
    "offsetof(struct cw_live, regs)": LIVE.size - 27 * 8,
    "sizeof(struct cw_switches)": SWITCHES.size,
    "sizeof(struct cw_live_settings)": stacks.SETTINGS.size,
    "offsetof(struct cw_caught, stack)": CAUGHT.size,
    "sizeof(struct cw_caught)": CAUGHT.size + 9 * PAGE,
    "CW_LIVE_SP": stacks.SP,
    "CW_CAUGHT_PAGES": pages_for(stacks.MAX_CAUGHT_STACK),
    "CW_LIVE_ON_CPU": stacks.ON_CPU,
    "CW_LIVE_MOVED": stacks.MOVED,
    "CW_LIVE_KERNEL": stacks.KERNEL,
}


def record(flags: int = 0, regs: tuple[int, ...] = REGS) -> bytes:
    head = (10, 20, 30, 5001, 5000, 7, 1, flags, 3, b"worker\x1b[2J")
    return LIVE.pack(*head, 100, 200, 300, 40, 50, *regs)


def listed(flags: int = 0, later: bytes = SWITCHES.pack(30, 90, 5001, 0)) -> Listed:
    return Listed(record(flags), array("Q", [SP - 128, len(STACK)]), STACK, [len(STACK)], later)


def thread(**changes: object) -> ThreadStack:
    values: dict[str, object] = {
        "time_ns": 10,
        "process_start_ns": 20,
        "start_ns": 30,
        "tid": 5001,
        "tgid": 5000,
        "ns_tid": 7,
        "name": "worker\x1b[2J",
        "state": "S",
        "on_cpu": False,
        "exact": True,
        "cpu": 3,
        "user_ns": 100,
        "system_ns": 200,
        "runtime_ns": 300,
        "voluntary": 40,
        "involuntary": 50,
        "regs": REGS,
        "stack_address": SP - 128,
        "stack": STACK,
    }
    return ThreadStack(**{**values, **changes})  # type: ignore[arg-type]


def test_sizes_and_constants_are_the_compilers(tmp_path: Path) -> None:
    assert values_of(EXPECTED, tmp_path, BPF / "coreward.h", BPF / "live.h") == EXPECTED


def test_a_thread_is_decoded_whole() -> None:
    assert list(decode_listed([listed()])) == [thread()]


def test_a_stack_is_where_its_pointer_is() -> None:
    # GIVEN a pointer within a page, near its start, with the thread's control block close above it,
    # at the end of the addresses, and a thread of the kernel
    pointers = [SP, SP & -PAGE | 16, SP, (1 << 64) - 24, 127]
    registers = [(*REGS[:19], sp, *REGS[20:]) for sp in pointers]
    registers[2] = (*REGS[:21], SP + 512, *REGS[22:])
    states = b"".join(record(regs=regs) for regs in registers) + record(stacks.KERNEL)
    # THEN what is wanted of a stack starts with the red zone, but in sp's own page, and ends with
    # what was asked for, with the block, or with the addresses
    assert list(zip(*[iter(extents(states, PAGE))] * 2, strict=True)) == [
        (SP - 128, PAGE + 128),
        (SP & -PAGE, PAGE + 16),
        (SP - 128, 512 + 128),
        ((1 << 64) - 24 - 128, 24 + 128),
        (0, PAGE + 127),
        (0, 0),
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (stacks.ON_CPU, {"on_cpu": True, "exact": False}),
        (stacks.MOVED, {"exact": False}),
        (stacks.KERNEL, {"regs": None}),
    ],
)
def test_flags_say_what_is_known(flags: int, expected: dict[str, object]) -> None:
    (found,) = decode_listed([listed(flags)])
    assert found == thread(**expected)


@pytest.mark.parametrize(
    "later",
    [
        b"",  # it was not seen again
        SWITCHES.pack(30, 90, 5002, 0),
        SWITCHES.pack(30, 91, 5001, 0),  # it was switched to, and away from
        SWITCHES.pack(30, 90, 5001, 1),  # it runs
        SWITCHES.pack(31, 90, 5001, 0),  # it is another thread, of the same id
    ],
)
def test_a_thread_that_ran_while_its_stack_was_read_is_not_exact(later: bytes) -> None:
    (found,) = decode_listed([listed(later=later)])
    assert found == thread(exact=False)


def test_a_thread_whose_stack_was_not_asked_for_has_none() -> None:
    assert list(decode_listed([Listed(record(), array("Q"), b"", [], b"")])) == [
        thread(stack_address=0, stack=b"")
    ]


def test_a_stack_that_can_not_be_read_is_empty() -> None:
    (found,) = decode_listed([listed()._replace(stacks=b"", sizes=[0])])
    assert found == thread(stack_address=0, stack=b"")


@pytest.mark.parametrize(
    "damaged",
    [
        listed()._replace(states=record()[:-1]),
        Listed(record()[:-1], array("Q"), b"", [], b""),
        listed(later=bytes(SWITCHES.size - 1)),
    ],
)
def test_damaged_records_are_refused(damaged: Listed) -> None:
    with pytest.raises(ProbeError):
        list(decode_listed([damaged]))


def test_a_caught_thread_has_the_registers_and_the_stack_of_that_moment() -> None:
    # GIVEN a thread that ran while it was listed
    (seen,) = decode_listed([listed(stacks.ON_CPU | stacks.MOVED)])
    # WHEN it was caught a little later
    sp = SP - 0x1000
    regs = (*REGS[:19], sp, *REGS[20:])
    raw = CAUGHT.pack(11, 30, 5001, 1, 9, 0, *regs, sp & -PAGE) + b"s" * (9 * PAGE)
    caught = decode_caught(raw, PAGE)
    # THEN it is exact
    assert with_caught(seen, caught) == thread(
        time_ns=11, on_cpu=True, regs=regs, stack_address=sp - 128, stack=b"s" * (128 + 128)
    )
    with pytest.raises(ProbeError):
        decode_caught(raw[: CAUGHT.size + 100], PAGE)
    with pytest.raises(ProbeError):
        decode_caught(raw[:40], PAGE)


@pytest.mark.parametrize(("stack", "pages"), [(0, 0), (1, 1), (4096, 2), (8192, 3), (65536, 17)])
def test_pages_hold_the_stack_from_any_address(stack: int, pages: int) -> None:
    assert pages_for(stack) == pages


@pytest.mark.parametrize("stack", [-1, 65537])
def test_a_stack_that_does_not_fit_is_refused(stack: int) -> None:
    with pytest.raises(ValueError, match="0 to 65536"):
        check_size(stack)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0,2-3,8\n", [0, 2, 3, 8])]
)
def test_cpu_lists(text: str, cpus: list[int]) -> None:
    assert parse_cpus(text) == cpus
