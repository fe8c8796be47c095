"""The names of system calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from collector.arch.syscalls import syscall_name

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")


@pytest.mark.parametrize(("bits", "segment"), [(64, 0x33), (32, 0x23)])
def test_names_of_system_calls_are_those_of_the_header(bits: int, segment: int) -> None:
    header = HEADERS / f"unistd_{bits}.h"
    if not header.exists():
        pytest.skip("no headers of the C library here")
    pairs = re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())
    assert {int(number): syscall_name(int(number), segment) for _, number in pairs} == {
        int(number): name for name, number in pairs
    }


@pytest.mark.parametrize(("number", "segment"), [(9999, 0x33), (-1, 0x33), (222, 0x23)])
def test_what_has_no_name_here_has_none(number: int, segment: int) -> None:
    assert syscall_name(number, segment) is None
