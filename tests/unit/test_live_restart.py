"""The kernel's codes for interrupted system calls."""

from __future__ import annotations

import os

import pytest

from collector.arch.x86_64 import Reg
from collector.linux.procfs import Blocked
from collector.snapshot.restart import EINTR, by_hand, has_noticed, would_notice

U64 = 1 << 64
IP = 0x401002
READ, CLOSE, EPOLL_WAIT, FUTEX, RESTART_SYSCALL = 0, 3, 232, 202, 219


def regs(rax: int, orig_rax: int) -> list[int]:
    words = list(range(27))
    words[Reg.RAX], words[Reg.ORIG_RAX], words[Reg.RIP] = rax % U64, orig_rax % U64, IP
    return words


@pytest.mark.parametrize(
    ("rax", "call", "expected"),
    [
        (-4, EPOLL_WAIT, (EPOLL_WAIT, -1, IP - 2)),
        (-4, CLOSE, (-4, CLOSE, IP)),  # has closed: never again
        (-512, FUTEX, (FUTEX, -1, IP - 2)),
        (-513, FUTEX, (FUTEX, -1, IP - 2)),
        (-514, EPOLL_WAIT, (EPOLL_WAIT, -1, IP - 2)),
        (-516, FUTEX, (RESTART_SYSCALL, -1, IP - 2)),
        (-11, READ, (-11, READ, IP)),
        (5, READ, (5, READ, IP)),
        (-512, -1, (-512, -1, IP)),  # not in a system call: a value of the program's own
        (-4, -1, (-4, -1, IP)),
    ],
)
def test_by_hand(rax: int, call: int, expected: tuple[int, int, int]) -> None:
    words = regs(rax, call)
    after = by_hand(words)
    wanted = list(words)
    wanted[Reg.RAX], wanted[Reg.ORIG_RAX] = expected[0] % U64, expected[1] % U64
    wanted[Reg.RIP] = expected[2]
    assert after == wanted
    assert words == regs(rax, call)  # a copy was changed


def test_only_eintr_of_calls_that_can_start_again_is_noticed() -> None:
    assert has_noticed(EINTR, EPOLL_WAIT)
    assert not has_noticed(EINTR, CLOSE)
    assert not has_noticed(EINTR, U64 - 1)
    assert not has_noticed(0, EPOLL_WAIT)


def test_reading_would_be_noticed_at_sockets_only() -> None:
    pair = os.pipe()
    try:
        call = Blocked(READ, (pair[0], 0, 0, 0, 0, 0), 0, 0)
        assert not would_notice(os.getpid(), call)
    finally:
        os.close(pair[0])
        os.close(pair[1])
    assert not would_notice(os.getpid(), Blocked(READ, (-1, 0, 0, 0, 0, 0), 0, 0))
    assert would_notice(os.getpid(), Blocked(EPOLL_WAIT, (0, 0, 0, 0, 0, 0), 0, 0))
    assert not would_notice(os.getpid(), Blocked(None, (), 0, 0))
    assert not would_notice(os.getpid(), None)
