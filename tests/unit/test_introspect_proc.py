"""What /proc says, parsed; and the names of system calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from collector.introspect import SystemCall, syscall_name
from collector.introspect.procfs import Stat, Wait, parse_stat, parse_syscall

UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def test_a_stat_line_with_a_hostile_name() -> None:
    line = (
        b"77 (a) R 1 (\n) S 5 77 77 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 6 0 12345 1 2 "
        + b"0 " * 14
        + b"3 0 0\n"
    )
    assert parse_stat(line) == Stat(
        comm="a) R 1 (\n",
        state="S",
        ppid=5,
        flags=4194304,
        user_ns=2_500_000_000,
        system_ns=500_000_000,
        threads=6,
        start_ns=123_450_000_000,
        cpu=3,
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"running\n", None),
        (b"", None),
        (b"-1 0x7ffe 0x55aa\n", Wait(None, 0x55AA, 0x7FFE)),
        (
            b"0 0x3 0x10 0x20 0x0 0x0 0xffffffffffffffff 0x7ffe 0x55aa\n",
            Wait(
                SystemCall(number=0, name="read", args=(3, 16, 32, 0, 0, (1 << 64) - 1)),
                0x55AA,
                0x7FFE,
            ),
        ),
    ],
)
def test_a_syscall_line(line: bytes, expected: Wait | None) -> None:
    assert parse_syscall(line) == expected


def test_names_of_system_calls_are_those_of_the_header() -> None:
    if not UNISTD.exists():
        pytest.skip("no headers of the C library here")
    pairs = re.findall(r"#define __NR_(\w+) (\d+)", UNISTD.read_text())
    assert {int(number): syscall_name(int(number)) for _, number in pairs} == {
        int(number): name for name, number in pairs
    }


@pytest.mark.parametrize(("number", "segment"), [(9999, 0x33), (-1, 0x33), (1, 0x23)])
def test_what_has_no_name_here_has_none(number: int, segment: int) -> None:
    assert syscall_name(number, segment) is None
