"""Threads with stacks: the layout is the compiler's, and what is damaged is refused."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from collector.errors import ProbeError
from collector.probe import live, stacks
from collector.probe.clock import parse_cpus
from collector.probe.stacks import (
    CAUGHT,
    LIVE,
    PAGE,
    Chunk,
    ThreadStack,
    decode_caught,
    decode_stacks,
    pages_for,
    with_caught,
)

BPF = Path(__file__).resolve().parents[2] / "bpf"
SP = 0x7FFF_0000_1F80
REGS = (*range(100, 119), SP, *range(120, 127))
PAGES = b"".join(bytes([number]) * PAGE for number in range(4))

EXPECTED = {
    "sizeof(struct cs_live)": LIVE.size,
    "offsetof(struct cs_live, regs)": LIVE.size - 24 - 27 * 8,
    "sizeof(struct cs_live_settings)": stacks.SETTINGS.size,
    "offsetof(struct cs_caught, stack)": CAUGHT.size,
    "sizeof(struct cs_caught)": CAUGHT.size + 9 * PAGE,
    "CS_LIVE_SP": stacks.SP,
    "CS_RED_ZONE": stacks.RED_ZONE,
    "CS_LIVE_PAGES": pages_for(stacks.MAX_STACK),
    "CS_LIVE_POOL": stacks.POOL_PAGES,
    "CS_CAUGHT_PAGES": pages_for(stacks.MAX_CAUGHT_STACK),
    "CS_LIVE_ON_CPU": stacks.ON_CPU,
    "CS_LIVE_MOVED": stacks.MOVED,
    "CS_LIVE_NO_ROOM": stacks.NO_ROOM,
    "CS_LIVE_KERNEL": stacks.KERNEL,
}


def record(
    flags: int = 0,
    first: int = 0,
    pages: int = 2,
    comm: bytes = b"worker\x1b[2J",
    size: int | None = None,
) -> bytes:
    size = pages * PAGE if size is None else size
    head = (10, 20, 30, 5001, 5000, 7, 1, flags, 3, comm)
    return LIVE.pack(*head, 100, 200, 300, 40, 50, *REGS, SP & -PAGE, first, pages, size, 0)


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
        "stack": (PAGES[PAGE : 3 * PAGE])[0xF80 - 128 :],
    }
    return ThreadStack(**{**values, **changes})  # type: ignore[arg-type]


def test_sizes_and_constants_are_the_compilers(tmp_path: Path) -> None:
    lines = "".join(f'\tprintf("%zu\\n", (size_t)({text}));\n' for text in EXPECTED)
    source = tmp_path / "contract.c"
    source.write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{BPF}/coresnap.h"\n#include "{BPF}/live.h"\n'
        f"int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    program = tmp_path / "contract"
    command = ["cc", "-Wall", "-Wpadded", "-Werror", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert dict(zip(EXPECTED, map(int, printed.split()), strict=True)) == EXPECTED


def test_a_thread_is_decoded_whole() -> None:
    assert list(decode_stacks([Chunk(record(first=1), PAGES)], 2 * PAGE)) == [thread()]


def test_no_more_stack_than_asked_for_is_kept() -> None:
    (found,) = decode_stacks([Chunk(record(first=1), PAGES)], 256)
    assert found == thread(stack=thread().stack[: 128 + 256])


def test_a_stack_ends_below_the_threads_control_block() -> None:
    regs = (*REGS[:21], SP + 512, *REGS[22:])
    raw = bytearray(record(first=1))
    at = LIVE.size - 24 - 27 * 8
    raw[at : at + 27 * 8] = struct.pack("<27Q", *regs)
    (found,) = decode_stacks([Chunk(bytes(raw), PAGES)], 2 * PAGE)
    assert found == thread(regs=regs, stack=thread().stack[: 128 + 512])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (stacks.ON_CPU, {"on_cpu": True, "exact": False}),
        (stacks.MOVED, {"exact": False}),
        (stacks.NO_ROOM, {"no_room": True}),
        (stacks.KERNEL, {"regs": None}),
    ],
)
def test_flags_say_what_is_known(flags: int, expected: dict[str, object]) -> None:
    (found,) = decode_stacks([Chunk(record(flags, first=1), PAGES)], 2 * PAGE)
    assert found == thread(**expected)


def test_a_stack_may_end_within_a_page_of_the_pool() -> None:
    (found,) = decode_stacks([Chunk(record(first=1, size=PAGE + 10), PAGES)], 2 * PAGE)
    assert found == thread(stack=PAGES[PAGE : 2 * PAGE + 10][0xF80 - 128 :])


def test_a_thread_without_a_stack_has_none() -> None:
    (found,) = decode_stacks([Chunk(record(pages=0), b"")], PAGE)
    assert found == thread(stack_address=0, stack=b"")


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(record()[:-1], PAGES),
        Chunk(record(first=3, pages=2), PAGES),
        Chunk(record(pages=0xFFFFFFFF, size=PAGE), PAGES),
        Chunk(record(pages=1, size=PAGE + 1), PAGES),
    ],
)
def test_damaged_records_are_refused(chunk: Chunk) -> None:
    with pytest.raises(ProbeError):
        list(decode_stacks([chunk], PAGE))


def test_a_caught_thread_has_the_registers_and_the_stack_of_that_moment() -> None:
    # GIVEN a thread that ran while it was listed
    (listed,) = decode_stacks([Chunk(record(stacks.ON_CPU | stacks.MOVED), PAGES)], PAGE)
    # WHEN it was caught a little later
    sp = SP - 0x1000
    regs = (*REGS[:19], sp, *REGS[20:])
    raw = CAUGHT.pack(11, 30, 5001, 1, 9, 0, *regs, sp & -PAGE) + b"s" * (9 * PAGE)
    caught = decode_caught(raw, PAGE)
    # THEN it is exact
    assert with_caught(listed, caught) == thread(
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
        pages_for(stack)


def test_pages_used_are_those_of_the_records() -> None:
    raw = record(first=0, pages=3) + record(first=3, pages=0) + record(first=3, pages=2)
    assert live.LiveProbe._used(raw) == 5


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0,2-3,8\n", [0, 2, 3, 8])]
)
def test_cpu_lists(text: str, cpus: list[int]) -> None:
    assert parse_cpus(text) == cpus
