"""What a siginfo_t says."""

from __future__ import annotations

import signal
import struct

import pytest

from collector.siginfo import SI_KERNEL, SigInfo, decode


def raw(signo: int, code: int, rest: bytes) -> bytes:
    return struct.pack("<iii4x", signo, 0, code) + rest.ljust(32, b"\0")


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param(
            raw(signal.SIGSEGV, 1, struct.pack("<Q", 0xDEAD)),
            SigInfo(signal.SIGSEGV, 1, 0xDEAD, None, None),
            id="fault",
        ),
        pytest.param(
            raw(signal.SIGSEGV, SI_KERNEL, struct.pack("<Q", 0xDEAD)),
            SigInfo(signal.SIGSEGV, SI_KERNEL, None, None, None),
            id="a fault whose address the CPU does not tell",
        ),
        pytest.param(
            raw(signal.SIGABRT, -6, struct.pack("<iI", 42, 1000)),
            SigInfo(signal.SIGABRT, -6, None, (42, 1000), None),
            id="tgkill",
        ),
        pytest.param(
            raw(signal.SIGALRM, -2, struct.pack("<iI", 1, 2)),
            SigInfo(signal.SIGALRM, -2, None, None, None),
            id="a timer is no process",
        ),
        pytest.param(
            raw(signal.SIGSYS, 1, struct.pack("<Qi", 0x1000, 110)),
            SigInfo(signal.SIGSYS, 1, 0x1000, None, 110),
            id="a refused system call",
        ),
    ],
)
def test_what_a_code_promises(info: bytes, expected: SigInfo) -> None:
    assert decode(info) == expected
    assert decode(info.ljust(128, b"\0")) == expected


def test_too_few_bytes() -> None:
    assert decode(raw(signal.SIGSYS, 1, b"")[:31]) is None
    assert decode(b"") is None
