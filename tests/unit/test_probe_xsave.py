"""XSAVE areas: compacted ones become the standard format; what was never used reads as initial."""

from __future__ import annotations

import struct

import pytest

from collector.arch import xsave
from collector.arch.xsave import Component, Layout

YMM, OPMASK, ZMM_HIGH, PKRU, SUPERVISOR = 2, 5, 6, 9, 11
# A CPU whose supervisor component lies between the user's in the compacted format.
CPU = Layout(
    features=0b11 | 1 << YMM | 1 << OPMASK | 1 << ZMM_HIGH | 1 << PKRU,
    size=2432,
    mxcsr_mask=0x2FFFF,
    components=(
        Component(YMM, 256, 576, False),
        Component(OPMASK, 64, 1088, False),
        Component(ZMM_HIGH, 512, 1152, True),
        Component(PKRU, 8, 2424, False),
        Component(SUPERVISOR, 16, 0, False),
    ),
)
COMPACTED = 1 << 63


def legacy(marker: int) -> bytes:
    """The first 512 bytes, each part with its own bytes."""
    area = bytearray([marker]) * 512
    struct.pack_into("<II", area, 24, 0x1FA0, 0xFFFF)
    return bytes(area)


def area(in_use: int, compaction: int, *components: bytes) -> bytes:
    return (
        legacy(7) + struct.pack("<QQ", in_use, compaction).ljust(64, b"\0") + b"".join(components)
    )


def initial() -> bytearray:
    """What user space sees of a thread that has touched nothing."""
    out = bytearray(CPU.size)
    struct.pack_into("<H", out, 0, 0x37F)
    struct.pack_into("<II", out, 24, 0x1F80, CPU.mxcsr_mask)
    struct.pack_into("<Q", out, 464, CPU.features)
    return out


def test_nothing_in_use_is_the_initial_state() -> None:
    found = xsave.standard(area(0, COMPACTED | CPU.features), CPU.features, 0, CPU)
    assert found == bytes(initial())


def test_compacted_components_go_to_their_places() -> None:
    in_use = 0b11 | 1 << YMM | 1 << ZMM_HIGH
    saved = 0b11 | 1 << YMM | 1 << OPMASK | 1 << ZMM_HIGH
    # 576: YMM, 832: OPMASK (space of what is not in use stays), 896: ZMM at a multiple of 64
    raw = area(in_use, COMPACTED | saved, b"\2" * 256, b"\xee" * 64, b"\6" * 512)
    expected = initial()
    expected[:24] = bytes([7]) * 24
    struct.pack_into("<II", expected, 24, 0x1FA0, 0xFFFF)
    expected[32:416] = bytes([7]) * 384
    struct.pack_into("<Q", expected, 512, in_use)
    expected[576:832] = b"\2" * 256
    expected[1152:1664] = b"\6" * 512
    assert xsave.standard(raw, CPU.features, 0, CPU) == bytes(expected)


def test_alignment_and_supervisor_components_move_what_follows() -> None:
    in_use = 1 << ZMM_HIGH | 1 << SUPERVISOR
    saved = 1 << OPMASK | 1 << ZMM_HIGH | 1 << SUPERVISOR
    raw = area(in_use, COMPACTED | saved, b"\5" * 64, b"\6" * 512, b"\xbb" * 16)
    expected = initial()
    struct.pack_into("<Q", expected, 512, 1 << ZMM_HIGH)  # the kernel's own are not shown
    expected[1152:1664] = b"\6" * 512
    assert xsave.standard(raw, CPU.features, 0, CPU) == bytes(expected)


def test_an_area_that_is_not_compacted_is_taken_as_it_is() -> None:
    in_use = 1 << OPMASK
    raw = area(in_use, 0).ljust(1088, b"\0") + b"\5" * 64
    expected = initial()
    struct.pack_into("<Q", expected, 512, in_use)
    expected[1088:1152] = b"\5" * 64
    assert xsave.standard(raw, CPU.features, 0, CPU) == bytes(expected)


def test_mxcsr_belongs_to_sse_and_ymm() -> None:
    raw = area(1 << YMM, COMPACTED | 1 << YMM, b"\2" * 256)
    found = xsave.standard(raw, CPU.features, 0, CPU)
    assert found is not None
    assert struct.unpack_from("<II", found, 24) == (0x1FA0, 0xFFFF)
    assert found[160:416] == bytes(256)


def test_protection_keys_come_from_the_task() -> None:
    in_use = 1 << PKRU
    raw = area(in_use, COMPACTED | in_use, b"\xff" * 8)
    found = xsave.standard(raw, CPU.features, 0x55555554, CPU)
    assert found is not None
    assert found[2424:] == struct.pack("<II", 0x55555554, 0)


def test_components_that_user_space_may_not_have_are_hidden() -> None:
    in_use = 1 << YMM
    raw = area(in_use, COMPACTED | in_use, b"\2" * 256)
    assert xsave.standard(raw, 0b11, 0, CPU) == bytes(initial())


@pytest.mark.parametrize("length", [0, 100, 575, 600])
def test_a_cut_area_is_no_area(length: int) -> None:
    raw = area(1 << YMM, COMPACTED | 1 << YMM, b"\2" * 256)
    assert xsave.standard(raw[:length], CPU.features, 0, CPU) is None


def test_the_layout_note_lists_the_user_components() -> None:
    note = xsave.layout_note(CPU)
    assert [struct.unpack_from("<4I", note, at) for at in range(0, len(note), 16)] == [
        (YMM, 256, 576, 0),
        (OPMASK, 64, 1088, 0),
        (ZMM_HIGH, 512, 1152, 0),
        (PKRU, 8, 2424, 0),
    ]
