"""/proc/PID of one process through one descriptor, so that a recycled pid is never followed.

Look-ups below the descriptor fail with ESRCH when that very process is gone (proc(5)). Knows no
BPF.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import CODE_32_BIT, CODE_64_BIT, PAGE, RED_ZONE, is_32_bit
from collector.errors import NotPermitted, ProcessError, ProcessGone
from collector.introspect.types import ProcessIdentity, Source, Stack, SystemCall, ThreadState
from collector.linux import cgroupfs, procfs
from collector.linux.clock import boot_to_utc
from collector.linux.pagemap import has_arguments
from collector.linux.procfs import thread_with_memory
from collector.model import ProcessKey
from collector.policy.facts import is_container, unit_of_cgroup

_READ = 1 << 16  # more than any of these files has, but for maps
_DIES = procfs.PF_POSTCOREDUMP | procfs.PF_SIGNALED  # of the leader, whichever thread crashed
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


class ProcFolder:
    """The open folder of one process. A context manager by `close`."""

    def __init__(self, pid: int) -> None:
        """ProcessGone if there is no such process, or `pid` is one of a mere thread."""
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ProcessGone(f"there is no process {pid}") from error
        try:
            if procfs.number(self.read("status"), b"Tgid") != pid:
                raise ProcessGone(f"{pid} is a thread, and no process")
            self.start_ns = self.stat().start_ns
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a file in the folder. ProcessGone or NotPermitted if it cannot be."""
        try:
            try:
                return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._fd)
            except (ProcessLookupError, FileNotFoundError):
                if (other := self._of_memory(name)) == name:
                    raise
                return os.open(other, flags | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise self._reason(error) from error

    def _of_memory(self, name: str) -> str:
        """`name`, or the same file of a thread that has the memory if the main one has ended."""
        if "/" in name or (tid := thread_with_memory(self.pid)) == self.pid:
            return name
        return f"task/{tid}/{name}"

    def read(self, name: str, limit: int = _READ) -> bytes:
        """The whole file, up to `limit` bytes."""
        fd = self.open(name)
        try:
            return procfs.read_all(fd, limit)
        except OSError as error:
            raise self._reason(error) from error
        finally:
            os.close(fd)

    def _reason(self, error: OSError) -> ProcessError:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return ProcessGone(f"process {self.pid} has ended")
        if error.errno in (errno.EACCES, errno.EPERM):
            return NotPermitted(f"process {self.pid} cannot be read: {self._refusal()}")
        return ProcessError(f"process {self.pid} cannot be read: {error.strerror}")

    def _refusal(self) -> str:
        """Why the kernel refuses (ptrace(2), "Ptrace access mode checking"), and what helps."""
        with contextlib.suppress(OSError, ProcessError, ValueError):
            owner = procfs.number(self.read("status"), b"Uid")
            if owner is not None and owner != os.geteuid():
                return f"it is user {owner}'s, this is user {os.geteuid()}: run as root"
            if _PTRACE_SCOPE.exists() and int(_PTRACE_SCOPE.read_text()) > 0:
                return "kernel.yama.ptrace_scope forbids it: run as root"
        return "it is not dumpable, or a security module forbids it: run as root"

    def stat(self) -> procfs.Stat:
        return procfs.parse_stat(self.read("stat"))

    def _stat_of_memory(self) -> procfs.Stat:
        return procfs.parse_stat(self.read(self._of_memory("stat")))

    def is_kernel(self) -> bool:
        """Whether it is a thread of the kernel: no memory, no registers."""
        return bool(self.stat().flags & procfs.PF_KTHREAD)

    def is_dying(self) -> bool:
        """Whether its core is being dumped, or it is on its way out after that."""
        return bool(self.stat().flags & _DIES) or procfs.is_dumping(self.read("status"))

    def cgroup(self) -> bytes:
        """Its /proc/PID/cgroup (cgroups(7)); of a thread that has ended v1 names the root."""
        return self.read(self._of_memory("cgroup"))

    def resident_bytes(self) -> int:
        return procfs.size(self.read(self._of_memory("status")), b"VmRSS") or 0

    def identity(self) -> ProcessIdentity:
        stat, status = self.stat(), self.read(self._of_memory("status"))
        path = (
            cgroupfs.path_in(text)
            if (text := self._read_or_none(self._of_memory("cgroup")))
            else None
        )
        nested = len((procfs.field(status, b"NSpid") or b"").split()) > 1
        words = self._cmdline().rstrip(b"\0").split(b"\0")
        return ProcessIdentity(
            key=ProcessKey(self.pid, stat.start_ns),
            ns_pid=int((procfs.field(status, b"NStgid") or str(self.pid).encode()).split()[-1]),
            ppid=stat.ppid,
            started=boot_to_utc(stat.start_ns),
            comm=stat.comm,
            exe=self._exe(),
            cmdline=[os.fsdecode(word) for word in words] if words != [b""] else [],
            uid=procfs.number(status, b"Uid") or 0,
            gid=procfs.number(status, b"Gid") or 0,
            cgroup=path,
            unit=unit_of_cgroup(path) if path is not None else None,
            container=is_container(path, nested),
            threads=stat.threads,
            resident_bytes=procfs.size(status, b"VmRSS") or 0,
        )

    def _cmdline(self) -> bytes:
        """Nothing if its arguments would keep us waiting, where that can be asked."""
        with contextlib.suppress(ProcessError):
            fd = self.open("pagemap")
            try:
                if not has_arguments(fd, self._stat_of_memory(), _READ):
                    return b""
            finally:
                os.close(fd)
        return self.read(self._of_memory("cmdline"))

    def _read_or_none(self, name: str) -> bytes | None:
        with contextlib.suppress(ProcessError):
            return self.read(name)
        return None

    def _exe(self) -> str | None:
        with contextlib.suppress(OSError):
            return os.readlink(self._of_memory("exe"), dir_fd=self._fd)
        return None

    def wait_channel(self, tid: int) -> str | None:
        """The kernel's function in which a thread sleeps; None: none, or it is kept secret."""
        return procfs.parse_wchan(self._read_or_none(f"task/{tid}/wchan"))

    def threads(self, stack: int = 0) -> list[ThreadState]:
        """All threads, one after the other; those that end meanwhile are missing.

        `stack`: so many bytes of the stacks of those that sleep, where this user may read them.
        """
        try:
            fd = self.open("task", os.O_RDONLY | os.O_DIRECTORY)
            try:
                tids = [int(name) for name in os.listdir(fd)]  # noqa: PTH208 (a descriptor)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._reason(error) from error
        found = list(self._thread_states(tids, stack))
        if not found:
            raise ProcessGone(f"process {self.pid} has ended")
        return found

    def _thread_states(self, tids: list[int], stack: int) -> Iterator[ThreadState]:
        narrow = is_32_bit(self._read_or_none("auxv") or b"")
        code = CODE_32_BIT if narrow else CODE_64_BIT
        for tid in sorted(tids):
            with contextlib.suppress(ProcessGone):
                stat = procfs.parse_stat(self.read(f"task/{tid}/stat"))
                if not stat.flags & procfs.PF_WORKER:
                    yield self._thread(tid, stat, stack, code)

    def _wait(self, tid: int, size: int) -> tuple[procfs.Blocked | None, Stack | None]:
        """Where a thread sleeps, and its stack if it did not wake while that was read."""
        name = f"task/{tid}/syscall"
        try:
            line = self.read(name)
            wait = procfs.parse_syscall(line)
            if wait is None or not size:
                return wait, None
            found = self._memory(wait.sp - RED_ZONE, size + RED_ZONE)
            if not found.data or self.read(name) != line:
                return wait, None
        except NotPermitted:
            return None, None
        return wait, found

    def _memory(self, address: int, size: int) -> Stack:
        """What of this range can be read; it begins later if its first page cannot be."""
        fd = self.open("mem")
        try:
            for start in (address, (address + RED_ZONE) & -PAGE):
                with contextlib.suppress(OSError, OverflowError):
                    if data := os.pread(fd, address + size - start, start):
                        return Stack(start, data)
            return Stack(address, b"")
        finally:
            os.close(fd)

    def _thread(self, tid: int, stat: procfs.Stat, stack: int, code: int) -> ThreadState:
        status = self.read(f"task/{tid}/status")
        wait, memory = self._wait(tid, stack)
        runtime = self._read_or_none(f"task/{tid}/schedstat")
        return ThreadState(
            tid=tid,
            name=stat.comm,
            state=stat.state,
            source=Source.PROC,
            exact=wait is not None,
            time_ns=time.monotonic_ns(),
            start_ns=stat.start_ns,
            on_cpu=None,
            cpu=stat.cpu,
            runtime_ns=int(runtime.split()[0]) if runtime else stat.user_ns + stat.system_ns,
            user_ns=stat.user_ns,
            system_ns=stat.system_ns,
            voluntary=procfs.number(status, b"voluntary_ctxt_switches"),
            involuntary=procfs.number(status, b"nonvoluntary_ctxt_switches"),
            syscall=_system_call(wait, code) if wait else None,
            ip=wait.ip if wait else None,
            sp=wait.sp if wait else None,
            stack=memory,
        )


def _system_call(wait: procfs.Blocked, code: int) -> SystemCall | None:
    if wait.number is None:
        return None
    return SystemCall(number=wait.number, name=syscall_name(wait.number, code), args=wait.args)
