"""A process as /proc shows it, opened once: its files, and what must be read while it is there.

Descriptors stay usable after it has gone: `mem` and `pagemap` for as long as a pin holds its
address space, `exe` and `root` without. Decoding is left to the process that writes the core.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from collector.errors import CaptureError
from collector.linux import procfs
from collector.linux.pagemap import has_arguments
from collector.linux.procfs import Stat, parse_stat, thread_with_memory
from collector.model import ProcessKey
from collector.native.contract import MAX_CMDLINE

_MAX_FILE = 16 << 20  # of any text of /proc: `status` with the most groups has 700 KB


class ProcText(msgspec.Struct, frozen=True, kw_only=True):
    """Files of /proc/PID, verbatim, read when it was opened."""

    stat: bytes
    status: bytes
    cmdline: bytes
    auxv: bytes
    cgroup: bytes
    coredump_filter: bytes
    maps: bytes | None  # only where BPF does not tell the mappings with their paths


class OpenProcess:
    """Open descriptors and facts of one process. A context manager; closing ends its use.

    Raises CaptureError when the process is gone or is not the one that was announced.
    """

    tid: int  # of a thread that has its memory: the main thread, unless that has ended

    def __init__(self, pid: int) -> None:
        self.pid = self.tid = pid
        self._fds: list[int] = []
        self._core_limit: int | None = None  # soft RLIMIT_CORE, once it is known
        try:
            self._open()
        except OSError as error:
            self.close()
            raise CaptureError(f"process {pid} left before it could be read: {error}") from error

    @classmethod
    def adopt(
        cls, pid: int, tid: int, files: Sequence[int], text: ProcText, core_limit: int
    ) -> Self:
        """One that was opened by others; its descriptors are this one's from now on.

        tid: of a thread that has its memory. files: of the directory of that thread, mem, pagemap,
        root, exe and mount namespace; exe and the last may be -1. core_limit: as of getrlimit(2).
        """
        self = cls.__new__(cls)
        self.pid, self.tid = pid, tid
        self._fds = [fd for fd in files if fd >= 0]
        self.dir_fd, self.mem_fd, self.pagemap_fd, self.root_fd, *may_lack = files
        self.exe_fd, self.mount_fd = (None if fd < 0 else fd for fd in may_lack)
        self.text = text
        self._core_limit = core_limit
        return self

    def _open(self) -> None:
        # one look-up of the pid: all else goes through this directory, whoever gets the pid next
        self.dir_fd = self._keep(os.open(f"/proc/{self.pid}", os.O_PATH | os.O_DIRECTORY))
        stat = self._read("stat")
        try:
            self.mem_fd = self._keep(os.open("mem", os.O_RDONLY, dir_fd=self.dir_fd))
            # older kernels (6.1) open it also where there is no memory any more
            os.readlink("exe", dir_fd=self.dir_fd)
        except (ProcessLookupError, FileNotFoundError):
            self._open_other()
        self.pagemap_fd = self._keep(os.open("pagemap", os.O_RDONLY, dir_fd=self.dir_fd))
        self.root_fd = self._keep(os.open("root", os.O_PATH, dir_fd=self.dir_fd))
        own = stat if self.tid == self.pid else self._read("stat")
        can_read = has_arguments(self.pagemap_fd, parse_stat(own), MAX_CMDLINE)
        self.text = ProcText(
            stat=stat,
            status=self._read("status"),
            cmdline=self._read("cmdline", MAX_CMDLINE) if can_read else b"",
            auxv=self._read("auxv"),
            cgroup=self._read("cgroup"),
            coredump_filter=self._read("coredump_filter"),
            maps=None,
        )
        self.exe_fd = self._keep_if("exe", os.O_PATH)
        # the mounts below its root are there only as long as somebody is in their namespace
        self.mount_fd = self._keep_if("ns/mnt", os.O_RDONLY)

    def _open_other(self) -> None:
        """The directory of another thread, for the main one has ended; /proc/TID has all files."""
        self.tid = thread_with_memory(self.pid)
        self.dir_fd = self._keep(os.open(f"/proc/{self.tid}", os.O_PATH | os.O_DIRECTORY))
        if procfs.number(self._read("status"), b"Tgid") != self.pid:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self.mem_fd = self._keep(os.open("mem", os.O_RDONLY, dir_fd=self.dir_fd))

    def _keep_if(self, name: str, flags: int) -> int | None:
        with contextlib.suppress(OSError):
            return self._keep(os.open(name, flags, dir_fd=self.dir_fd))
        return None

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _read(self, name: str, limit: int = _MAX_FILE) -> bytes:
        fd = os.open(name, os.O_RDONLY, dir_fd=self.dir_fd)
        try:
            return procfs.read_all(fd, limit)
        finally:
            os.close(fd)

    def open_shared(self, ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Descriptors of the files behind mappings, shared ones above all: their address -> fd.

        Through /proc/PID/map_files (proc(5)), which reaches unlinked files as well. They tell
        which pages exist at all, so that a sparse mapping is not filled by reading it.
        """
        found = {}
        for start, end in ranges:
            with contextlib.suppress(OSError):
                name = f"map_files/{start:x}-{end:x}"
                found[start] = self._keep(os.open(name, os.O_RDONLY, dir_fd=self.dir_fd))
        return found

    @property
    def resident(self) -> int:
        """Resident bytes (RSS), from /proc/PID/status; hugetlb pages included."""
        sizes = (procfs.size(self.text.status, name) for name in (b"VmRSS", b"HugetlbPages"))
        return sum(size or 0 for size in sizes)

    @property
    def ns_pid(self) -> int:
        """Its pid in its own pid namespace."""
        return int((procfs.field(self.text.status, b"NSpid") or b"0").split()[-1])

    @property
    def uid(self) -> int:
        return procfs.number(self.text.status, b"Uid") or 0

    @property
    def gid(self) -> int:
        return procfs.number(self.text.status, b"Gid") or 0

    @property
    def stat(self) -> Stat:
        return parse_stat(self.text.stat)

    @property
    def comm(self) -> str:
        return self.stat.comm

    def is_process(self, key: ProcessKey) -> bool:
        """Whether this is the process that an event spoke of, and not a later one of its pid."""
        return self.key.is_same(key)

    @property
    def key(self) -> ProcessKey:
        """Its key as far as /proc tells: exact to a clock tick."""
        return ProcessKey(self.pid, self.stat.start_ns)

    @property
    def cmdline(self) -> list[str]:
        words = self.text.cmdline.rstrip(b"\0").split(b"\0")
        return [os.fsdecode(word) for word in words] if words != [b""] else []

    @property
    def core_limit(self) -> int | None:
        """The soft RLIMIT_CORE in bytes; None: unlimited."""
        if self._core_limit is None:
            limit = procfs.core_limit(self._read("limits"))
            self._core_limit = resource.RLIM_INFINITY if limit is None else limit
        return None if self._core_limit == resource.RLIM_INFINITY else self._core_limit

    def keep(self, fd: int) -> None:
        """Take one more descriptor, to be closed with the others."""
        self._fds.append(fd)

    def close(self) -> None:
        """Close every descriptor. Safe to call again."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> OpenProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
