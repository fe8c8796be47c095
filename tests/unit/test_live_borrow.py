"""Which stopped thread is borrowed for a system call, and why none is."""

from __future__ import annotations

import pytest

from collector.arch.x86_64 import Reg
from collector.linux import ptrace
from collector.linux.ptrace import Stop, StopKind
from collector.snapshot import inject, restart
from collector.snapshot.inject import InjectionRefused, Injector

FUTEX, EPOLL_WAIT, PPOLL, SIGSUSPEND = 202, 232, 271, 130
U64 = 1 << 64


def registers(
    number: int = -1, rax: int = 0, cs: int = 0x33, flags: int = 0x246, **arguments: int
) -> list[int]:
    regs = [0] * 27
    regs[Reg.ORIG_RAX], regs[Reg.RAX] = number % U64, rax % U64
    regs[Reg.CS], regs[Reg.EFLAGS] = cs, flags
    for name, value in arguments.items():
        regs[Reg[name]] = value
    return regs


RUNNING = registers()
IN_FUTEX = registers(FUTEX, -ptrace.ERESTARTSYS)
IN_EPOLL = registers(EPOLL_WAIT, restart.EINTR)
IN_PPOLL = registers(PPOLL, -ptrace.ERESTARTNOHAND)
IN_PPOLL_MASKED = registers(PPOLL, -ptrace.ERESTARTNOHAND, R10=0x7000)
IN_SIGSUSPEND = registers(SIGSUSPEND, -ptrace.ERESTARTNOHAND, RDI=0x7000)
IN_32_BIT = registers(cs=0x23)
STEPPED = registers(flags=0x346)


@pytest.fixture
def injector(monkeypatch: pytest.MonkeyPatch) -> Injector:
    monkeypatch.setattr(ptrace, "get_rseq", lambda tid: 0)
    monkeypatch.setattr(ptrace, "dispatches_syscalls", lambda tid: False)
    return Injector(1)


def choose(injector: Injector, patch: pytest.MonkeyPatch, *threads: list[int]) -> int:
    """The index of the thread that is chosen among these."""
    patch.setattr(ptrace, "get_regs", lambda tid: list(threads[tid - 100]))
    stops = [Stop(100 + i, StopKind.INTERRUPT) for i in range(len(threads))]
    return injector.choose(stops) - 100


def test_the_thread_that_minds_least_is_borrowed(
    injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    GIVEN threads in several states
    WHEN one is to be borrowed
    THEN it is one in a call that restarts silently, then one that runs, last one that would notice
    """
    others = IN_SIGSUSPEND, IN_32_BIT, STEPPED, IN_PPOLL_MASKED
    assert choose(injector, monkeypatch, *others, IN_EPOLL, RUNNING, IN_FUTEX) == 6
    assert choose(injector, monkeypatch, *others, IN_EPOLL, RUNNING) == 5
    assert choose(injector, monkeypatch, *others, IN_EPOLL) == 4
    assert choose(injector, monkeypatch, *others, IN_PPOLL) == 4


def test_threads_without_a_seccomp_filter_come_first(
    injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    injector.seccomp = {100: 2}
    assert choose(injector, monkeypatch, IN_FUTEX, IN_EPOLL) == 1


@pytest.mark.parametrize(
    ("regs", "why"),
    [
        (IN_32_BIT, "running 32 bit code"),
        (STEPPED, "being single stepped"),
        (IN_SIGSUSPEND, "waiting with a signal mask of its own"),
        (IN_PPOLL_MASKED, "waiting with a signal mask of its own"),
    ],
)
def test_a_refusal_says_what_the_threads_are_doing(
    injector: Injector, monkeypatch: pytest.MonkeyPatch, regs: list[int], why: str
) -> None:
    with pytest.raises(InjectionRefused, match=f"none of its threads can be borrowed \\(2 {why}"):
        choose(injector, monkeypatch, regs, regs)


def test_a_thread_in_a_restartable_sequence_is_not_taken_out_of_it(
    injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    GIVEN a running thread whose struct rseq names a critical section
    WHEN one is to be borrowed
    THEN it is not that one, for the kernel would forget to abort the section
    """
    monkeypatch.setattr(ptrace, "get_rseq", lambda tid: 0x1000 if tid == 100 else 0)
    monkeypatch.setattr(injector, "_read", lambda address, size: b"\x01" * size)
    assert choose(injector, monkeypatch, RUNNING, RUNNING) == 1
    assert inject._RSEQ_CS == 8


def test_a_thread_to_which_calls_are_dispatched_makes_none(
    injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptrace, "dispatches_syscalls", lambda tid: tid == 100)
    assert choose(injector, monkeypatch, IN_FUTEX, IN_EPOLL) == 1
    with pytest.raises(InjectionRefused, match="1 with syscall user dispatch"):
        choose(injector, monkeypatch, IN_FUTEX)


def test_a_process_that_is_not_there_is_refused() -> None:
    with pytest.raises(InjectionRefused, match="there is no process 4194304"), Injector(1 << 22):
        pass
