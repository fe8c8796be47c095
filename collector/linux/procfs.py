"""The text files of /proc (proc(5)), each parsed here and nowhere else.

Parsers take the bytes of a file, so that the caller decides by which path or descriptor it reads
them. `field` and `size` look for one line only: a dying process waits for some of these files.
Nothing here knows whether a pid still names the process that the caller means; hold a descriptor of
its folder, or compare `Stat.start_ns`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # unit of the times in `stat`

# Flags of a task in `stat`, <linux/sched.h>
PF_WORKER = 0x10 | 0x4000  # PF_IO_WORKER, PF_USER_WORKER: the kernel's own, of io_uring or vhost
PF_POSTCOREDUMP = 0x8  # it has dumped core, or its group does
PF_SIGNALED = 0x400  # a signal has killed it
PF_KTHREAD = 0x200000  # a thread of the kernel

ENDED = "ZX"  # states of a thread that has ended: proc_pid_stat(5)
UNINTERRUPTIBLE = "D"

_READ = 1 << 20  # bytes; `status` with the most supplementary groups (65,536) has 700 KB
_PART = 32 << 10  # bytes read at a time: malloc(3) makes a mapping for each buffer of 64 KiB
_LISTINGS = 8  # of a folder of threads that changes all the time

# ---- files


def read(path: str, limit: int = _READ) -> bytes | None:
    """A small file of the kernel; None if it cannot be read, or is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_all(fd, limit)
        finally:
            os.close(fd)
    except OSError:
        return None


def read_all(fd: int, limit: int) -> bytes:
    """The rest of an open file, `limit` bytes at most. Raises OSError."""
    parts, left = [], limit
    while left > 0 and (part := os.read(fd, min(left, _PART))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


# ---- `Name:  value`: status, meminfo, fdinfo


def field(text: bytes, name: bytes) -> bytes | None:
    """The value of a line, blanks included; None if there is no such line."""
    start = len(name) + 1
    if not text.startswith(name + b":"):
        at = text.find(b"\n" + name + b":")
        if at < 0:
            return None
        start += at + 1
    end = text.find(b"\n", start)
    return text[start:] if end < 0 else text[start:end]


def number(text: bytes, name: bytes) -> int | None:
    """The first word of a line as a number; None if there is none. Of Uid and Gid: the real id."""
    words = (field(text, name) or b"").split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else None


def size(text: bytes, name: bytes) -> int | None:
    """A line of kB in bytes; None if there is none."""
    words = (field(text, name) or b"").split()
    if len(words) == 2 and words[1] == b"kB" and words[0].isdigit():
        return int(words[0]) * 1024
    return None


def core_limit(limits: bytes) -> int | None:
    """The soft RLIMIT_CORE in bytes, of the text of `limits`; None: unlimited.

    prlimit(2) tells it too, but of others' processes only to who has CAP_SYS_RESOURCE.
    Raises ProcessLookupError if it is not there: the process has gone.
    """
    name = b"Max core file size"
    at = limits.find(name)
    words = limits[at + len(name) :].split(None, 1) if at >= 0 else []
    if not words:
        raise ProcessLookupError(errno.ESRCH, "it has no limits any more")
    return None if words[0] == b"unlimited" else int(words[0])


def fields(text: bytes) -> dict[bytes, list[bytes]]:
    """The words of every line of `status` by the line's name."""
    found: dict[bytes, list[bytes]] = {}
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":\t")
        found.setdefault(name, value.split())
    return found


def is_dumping(status: bytes) -> bool:
    """Whether the process dumps core just now: CoreDumping of `status`, Linux >= 4.15."""
    return number(status, b"CoreDumping") == 1


# ---- stat


class Stat(NamedTuple):
    """Of /proc/PID/stat or task/TID/stat: proc_pid_stat(5). Times in ns, to a tick."""

    comm: str
    state: str  # one letter
    ppid: int
    pgrp: int
    session: int
    flags: int  # PF_*
    user_ns: int
    system_ns: int
    children_user_ns: int  # of children that were waited for
    children_system_ns: int
    nice: int
    threads: int
    start_ns: int  # CLOCK_BOOTTIME
    cpu: int
    arg_start: int  # addresses of the arguments; 0: it has no memory, or this is kept secret
    arg_end: int
    env_start: int  # the same of its environment
    env_end: int


def parse_stat(text: bytes) -> Stat:
    """The line of a `stat` file; the name in it may hold anything, parentheses as well.

    Raises ValueError or IndexError for any other text.
    """
    close = text.rindex(b")")
    words = text[close + 2 :].split()
    return Stat(
        comm=os.fsdecode(text[text.index(b"(") + 1 : close]),
        state=words[0].decode("ascii", "replace"),
        ppid=int(words[1]),
        pgrp=int(words[2]),
        session=int(words[3]),
        flags=int(words[6]),
        user_ns=int(words[11]) * TICK_NS,
        system_ns=int(words[12]) * TICK_NS,
        children_user_ns=int(words[13]) * TICK_NS,
        children_system_ns=int(words[14]) * TICK_NS,
        nice=int(words[16]),
        threads=int(words[17]),
        start_ns=int(words[19]) * TICK_NS,
        cpu=int(words[36]),
        arg_start=int(words[45]),
        arg_end=int(words[46]),
        env_start=int(words[47]),
        env_end=int(words[48]),
    )


# ---- syscall, wchan


class Blocked(NamedTuple):
    """Of task/TID/syscall: where a thread is blocked. `sp` and `ip` are of user space."""

    number: int | None  # None: it is blocked outside of system calls, in a page fault say
    args: tuple[int, ...]  # six words, whether used or not; none without a number
    sp: int
    ip: int


def parse_syscall(text: bytes) -> Blocked | None:
    """The line of a `syscall` file; None for a running thread."""
    words = text.split()
    if len(words) == 9:
        args = tuple(int(word, 16) for word in words[1:7])
        return Blocked(int(words[0]), args, int(words[7], 16), int(words[8], 16))
    if len(words) == 3 and words[0] == b"-1":
        return Blocked(None, (), int(words[1], 16), int(words[2], 16))
    return None


def parse_wchan(text: bytes | None) -> str | None:
    """The kernel's function in which a thread sleeps; None: it runs, or this is kept secret."""
    return text.decode("ascii", "replace") if text and text != b"0" else None


# ---- maps, smaps


class MapsLine(NamedTuple):
    """A mapping as /proc/PID/maps shows it: proc_pid_maps(5)."""

    start: int
    end: int  # exclusive
    permissions: bytes  # as b"r-xp"
    offset: int
    device: int  # major << 20 | minor, as the kernel's dev_t
    inode: int
    path: str | None  # unescaped; also "[heap]" and the like


class SmapsEntry(NamedTuple):
    """A mapping as /proc/PID/smaps shows it: proc_pid_smaps(5)."""

    line: MapsLine
    flags: frozenset[str]  # two letters each
    anonymous: int  # bytes of pages that belong to no file


def parse_maps(text: bytes) -> list[MapsLine]:
    """The lines of `maps`; other lines are left out, those of `smaps` between them for one."""
    return list(filter(None, map(_maps_line, text.split(b"\n"))))


def parse_smaps(text: bytes) -> list[SmapsEntry]:
    """The mappings of `smaps`."""
    return list(_smaps_entries(text))


def _maps_line(text: bytes) -> MapsLine | None:
    words = text.split(None, 5)
    if len(words) < 5 or b"-" not in words[0]:
        return None
    start, _, end = words[0].partition(b"-")
    major, _, minor = words[3].partition(b":")
    return MapsLine(
        start=int(start, 16),
        end=int(end, 16),
        permissions=words[1],
        offset=int(words[2], 16),
        device=int(major, 16) << 20 | int(minor, 16),
        inode=int(words[4]),
        # the kernel escapes the line feed alone
        path=os.fsdecode(words[5].replace(b"\\012", b"\n")) if len(words) > 5 else None,
    )


def _smaps_entries(text: bytes) -> Iterator[SmapsEntry]:
    line: MapsLine | None = None
    flags, anonymous = frozenset[str](), 0
    for row in text.split(b"\n"):
        if row[:1].isupper():  # the line of a mapping begins with a lower-case hexadecimal digit
            name, _, value = row.partition(b":")
            if name == b"Anonymous":
                anonymous = int(value.split()[0]) * 1024
            elif name == b"VmFlags":
                flags = frozenset(value.decode("ascii").split())
        elif (following := _maps_line(row)) is not None:
            if line is not None:
                yield SmapsEntry(line, flags, anonymous)
            line, flags, anonymous = following, frozenset(), 0
    if line is not None:
        yield SmapsEntry(line, flags, anonymous)


# ---- processes and threads


def process_ids() -> list[int]:
    """All processes of this pid namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  (hot)


def thread_ids(pid: int) -> list[int]:
    """The threads of a process in the order of their creation; empty if there is none.

    A thread that exists all the time is found: the kernel ends a listing early when the thread at
    which it stands exits, and then the listing is repeated.
    """
    found: dict[int, None] = {}
    for _ in range(_LISTINGS):
        try:
            names = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  (hot)
        except OSError:
            break
        found.update(dict.fromkeys(map(int, names)))
        if len(names) >= thread_count(pid):
            break
    return list(found)


def is_worker(pid: int, tid: int) -> bool:
    """Whether this is a thread of the kernel in a process: it never runs code of the process.

    Such are the threads of io_uring(7) and vhost. `thread_ids` and `thread_count` have them too.
    """
    line = read_thread(pid, tid, "stat")
    return bool(line and parse_stat(line).flags & PF_WORKER)


def thread_count(pid: int) -> int:
    """How many threads a process has, as fast as the kernel can say; 0 if there is none."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # noqa: PTH116  (hot)
    except OSError:
        return 0


def read_thread(pid: int, tid: int, name: str) -> bytes | None:
    """A small file of /proc/PID/task/TID; None if the thread is gone or it may not be read."""
    return read(f"/proc/{pid}/task/{tid}/{name}")


def thread_state(pid: int, tid: int) -> str | None:
    """The state of a thread, one letter; None if it is gone."""
    stat = read_thread(pid, tid, "stat")
    return chr(stat[stat.rindex(b")") + 2]) if stat else None  # hot: one letter of a full Stat


def blocked(pid: int, tid: int) -> Blocked | None:
    """Where a thread is blocked; None if it runs, is gone, or may not be asked (as ptrace(2))."""
    return parse_syscall(read_thread(pid, tid, "syscall") or b"")


def thread_with_memory(pid: int) -> int:
    """The id of a thread that has the memory of its process: `pid`, unless that thread has ended.

    A main thread that called pthread_exit(3) has neither memory nor files nor a root any more, and
    /proc/PID shows that thread. /proc/ID and process_vm_readv(2) of this id show the others'.
    """
    if _has_memory(pid):
        return pid
    try:
        tids = map(int, os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 (hot)
    except OSError:
        return pid  # it has ended; the caller's next look-up says so
    return next((tid for tid in tids if tid != pid and _has_memory(tid)), pid)


def _has_memory(tid: int) -> bool:
    """Whether its /proc/ID/exe leads somewhere: proc_pid_exe(5). Also if we may not ask."""
    try:
        os.readlink(f"/proc/{tid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True
