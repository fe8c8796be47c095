"""Whose program is a 32-bit one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from collector.arch.x86_64 import is_32_bit

SYSINFO, SYSINFO_EHDR, HWCAP, PAGESZ, NULL = 32, 33, 16, 6, 0  # <linux/auxvec.h>
NARROW = (SYSINFO, 0xF7F00000, SYSINFO_EHDR, 0xF7F00000, HWCAP, 0x178BFBFF, PAGESZ, 4096, NULL, 0)
WIDE = (SYSINFO_EHDR, 0x7FFD12345000, HWCAP, 0x178BFBFF, PAGESZ, 4096, NULL, 0)


@pytest.mark.parametrize(
    ("auxv", "narrow"),
    [
        (struct.pack("<10I", *NARROW), True),
        (struct.pack("<8Q", *WIDE), False),
        (struct.pack("<8Q", *WIDE) + bytes(3), False),
        (b"", False),
    ],
)
def test_the_auxiliary_vector_tells_the_size_of_words(auxv: bytes, narrow: bool) -> None:
    assert is_32_bit(auxv) is narrow


def test_this_program_is_a_64_bit_one() -> None:
    assert not is_32_bit(Path("/proc/self/auxv").read_bytes())
