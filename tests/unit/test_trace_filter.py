"""Which calls are wanted, and what they sum up to."""

from __future__ import annotations

import pytest

from collector.arch.syscalls import syscall_number
from collector.errors import UsageError
from collector.trace.filter import EVERYTHING, Wanted, parse
from collector.trace.summary import Summary
from tests.unit.trace_samples import call


def has(wanted: Wanted, name: str) -> bool:
    number = syscall_number(name)
    return bool(wanted[number // 64] >> number % 64 & 1)


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("openat", ["openat"], ["open", "read"]),
        ("trace=openat,close", ["openat", "close"], ["read"]),
        ("%file", ["openat", "unlink", "execve", "statx"], ["read", "close", "futex"]),
        ("%process", ["clone", "execve", "exit_group", "kill"], ["read"]),
        ("%network", ["socket", "sendto", "accept4"], ["read"]),
        ("%desc", ["read", "close", "openat", "epoll_wait"], ["getpid", "unlink"]),
        ("%memory", ["mmap", "brk"], ["read"]),
        ("!futex,%memory", ["read"], ["futex", "mmap"]),
        ("/^sched_", ["sched_yield"], ["read"]),
        ("?nosuchcall,read", ["read"], ["write"]),
        ("0", ["read"], ["write"]),
        ("none", [], ["read"]),
    ],
)
def test_sets(expression: str, inside: list[str], outside: list[str]) -> None:
    wanted = parse(expression)
    assert [name for name in inside if not has(wanted, name)] == []
    assert [name for name in outside if has(wanted, name)] == []


def test_code_of_32_bits_has_numbers_of_its_own() -> None:
    wanted = parse("read")
    assert wanted[8] == 1 << 3  # read(2) of 32-bit code
    assert wanted[0] == 1 << 0
    assert parse("all") == EVERYTHING


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nosuchcall", "no system call is named 'nosuchcall'"),
        ("%nosuchset", "the sets are desc, file, ipc, memory, network, process, signal"),
        ("signal=SIGTERM", "only trace= is known here, not signal="),
        ("/[", "unterminated character set"),
    ],
)
def test_what_is_no_set_is_named(expression: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(expression)
    assert message in str(caught.value)


def test_a_summary_has_the_most_time_first() -> None:
    summary = Summary()
    for result in (3, -2, -512):
        summary.add(call("openat", result=result))
    summary.add(call("getpid", result=1))
    openat, getpid = summary.rows()
    assert (openat.name, openat.calls, openat.errors, openat.total_ns) == ("openat", 3, 1, 6000)
    assert (getpid.name, getpid.calls, getpid.errors) == ("getpid", 1, 0)
    assert summary.lines()[2].split() == ["75.00", "0.000006", "2", "3", "1", "openat"]
    assert summary.lines()[-1].split() == ["100.00", "0.000008", "2", "4", "1", "total"]
