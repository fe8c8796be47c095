"""The text files of /proc, parsed."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from collector.linux import procfs
from collector.linux.procfs import Blocked, MapsLine, SmapsEntry, Stat
from collector.model import TICK_NS

STATUS = b"Name:\tevil\\nUid:\t7\nTgid:\t12\nUid:\t1000\t0\t0\t0\nVmRSS:\t   1024 kB\nNone:\t\n"


def test_a_tick_is_as_long_as_the_model_says() -> None:
    assert procfs.TICK_NS == TICK_NS


def test_a_stat_line_with_a_hostile_name() -> None:
    line = (
        b"77 (a) R 1 (\n) S 5 76 75 0 -1 4194304 1 2 3 4 250 50 7 8 20 -5 6 0 12345 1 2 "
        + b"0 " * 14
        + b"3 0 0 0 0 0 0 0 0 4096 4100 4200 4300 0\n"
    )
    assert procfs.parse_stat(line) == Stat(
        comm="a) R 1 (\n",
        state="S",
        ppid=5,
        pgrp=76,
        session=75,
        flags=4194304,
        user_ns=2_500_000_000,
        system_ns=500_000_000,
        children_user_ns=70_000_000,
        children_system_ns=80_000_000,
        nice=-5,
        threads=6,
        start_ns=123_450_000_000,
        cpu=3,
        arg_start=4096,
        arg_end=4100,
        env_start=4200,
        env_end=4300,
    )


def test_the_stat_line_of_this_process() -> None:
    stat = procfs.parse_stat(Path("/proc/self/stat").read_bytes())
    assert (stat.ppid, stat.pgrp, stat.session) == (os.getppid(), os.getpgrp(), os.getsid(0))
    assert stat.comm == Path("/proc/self/comm").read_text().rstrip("\n")
    assert stat.arg_end - stat.arg_start == len(Path("/proc/self/cmdline").read_bytes())
    assert not stat.flags & (procfs.PF_KTHREAD | procfs.PF_SIGNALED | procfs.PF_POSTCOREDUMP)


@pytest.mark.parametrize("text", [b"", b"1 (a", b"1 (a) S", b"1 (a) S 1 1 1 x"])
def test_what_is_no_stat_line_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        procfs.parse_stat(text)


@pytest.mark.parametrize(("limit", "expected"), [("4096", 4096), ("unlimited", None), ("0", 0)])
def test_the_limit_of_cores(limit: str, expected: int | None) -> None:
    text = f"Max data size  9  9 bytes\nMax core file size        {limit}   unlimited   bytes\n"
    assert procfs.core_limit(text.encode()) == expected


def test_the_limit_of_this_process() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    limit = procfs.core_limit(Path("/proc/self/limits").read_bytes())
    assert limit == (None if soft == resource.RLIM_INFINITY else soft)


@pytest.mark.parametrize("text", [b"", b"Max core file size"])
def test_who_has_gone_has_no_limits(text: bytes) -> None:
    with pytest.raises(ProcessLookupError):
        procfs.core_limit(text)


def test_lines_of_status() -> None:
    assert procfs.field(STATUS, b"Tgid") == b"\t12"
    assert procfs.number(STATUS, b"Uid") == 1000  # and not the 7 in a name
    assert procfs.size(STATUS, b"VmRSS") == 1 << 20
    assert procfs.number(STATUS, b"None") is None
    assert procfs.number(STATUS, b"Gid") is None
    assert procfs.size(STATUS, b"Tgid") is None
    assert procfs.fields(STATUS)[b"Uid"] == [b"1000", b"0", b"0", b"0"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (b"Name:\ta\nCoreDumping:\t1\nThreads:\t1\n", True),
        (b"Name:\ta\nCoreDumping:\t0\n", False),
        (b"Name:\tCoreDumping:\\n1\n", False),
        (b"", False),
    ],
)
def test_who_dumps_core(status: bytes, expected: bool) -> None:
    assert procfs.is_dumping(status) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"running\n", None),
        (b"", None),
        (b"-1 0x7ffe 0x55aa\n", Blocked(None, (), 0x7FFE, 0x55AA)),
        (
            b"0 0x3 0x10 0x20 0x0 0x0 0xffffffffffffffff 0x7ffe 0x55aa\n",
            Blocked(0, (3, 16, 32, 0, 0, (1 << 64) - 1), 0x7FFE, 0x55AA),
        ),
    ],
)
def test_a_syscall_line(line: bytes, expected: Blocked | None) -> None:
    assert procfs.parse_syscall(line) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [(b"futex_do_wait", "futex_do_wait"), (b"0", None), (None, None)]
)
def test_a_wait_channel(text: bytes | None, expected: str | None) -> None:
    assert procfs.parse_wchan(text) == expected


SMAPS = (
    b"55aa00000000-55aa00001000 r-xp 00002000 fd:01 131 /opt/a b\\012c (deleted)\n"
    b"Size:                  4 kB\n"
    b"Anonymous:             0 kB\n"
    b"VmFlags: rd ex mr mw me sd \n"
    b"7f0000000000-7f0000002000 rw-s 00000000 00:05 9 \n"
    b"Size:                  8 kB\n"
    b"Anonymous:             4 kB\n"
    b"THPeligible:           0\n"
    b"VmFlags: rd wr sh wf \n"
    b"7ffe00000000-7ffe00001000 ---p 00000000 00:00 0          [stack]\n"
)
LINES = [
    MapsLine(
        0x55AA00000000,
        0x55AA00001000,
        b"r-xp",
        0x2000,
        0xFD << 20 | 1,
        131,
        "/opt/a b\nc (deleted)",
    ),
    MapsLine(0x7F0000000000, 0x7F0000002000, b"rw-s", 0, 5, 9, None),
    MapsLine(0x7FFE00000000, 0x7FFE00001000, b"---p", 0, 0, 0, "[stack]"),
]


def test_mappings() -> None:
    assert procfs.parse_maps(SMAPS) == LINES
    assert procfs.parse_maps(b"") == []


def test_mappings_with_their_flags() -> None:
    assert procfs.parse_smaps(SMAPS) == [
        SmapsEntry(LINES[0], frozenset({"rd", "ex", "mr", "mw", "me", "sd"}), 0),
        SmapsEntry(LINES[1], frozenset({"rd", "wr", "sh", "wf"}), 4096),
        SmapsEntry(LINES[2], frozenset(), 0),
    ]


def test_the_mappings_of_this_process_are_the_same_in_both_files() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()  # it has loaded its libraries, and waits
        smaps, maps = (Path(f"/proc/{child.pid}/{name}").read_bytes() for name in ("smaps", "maps"))
        entries = procfs.parse_smaps(smaps)
        child.kill()
    assert [entry.line for entry in entries] == procfs.parse_maps(maps)
    assert all("rd" in e.flags for e in entries if e.line.permissions.startswith(b"r"))


def test_a_small_file_that_is_not_there_is_none() -> None:
    assert procfs.read("/proc/self/no such file") is None
    assert procfs.read("/proc/self/statm", 3) == Path("/proc/self/statm").read_bytes()[:3]


def test_the_main_thread_has_the_memory_while_it_lives() -> None:
    assert procfs.thread_with_memory(os.getpid()) == os.getpid()


def test_of_a_process_that_has_ended_no_other_thread_is_named() -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as child:
        child.wait()
        assert procfs.thread_with_memory(child.pid) == child.pid
