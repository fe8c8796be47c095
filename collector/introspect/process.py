"""One live process, looked at from outside without stopping it.

    with Process(pid) as process:
        for thread in process.threads(stack=8192):
            print(thread.tid, thread.state, thread.syscall)

It never writes to the process, never traces it, and never meets a later process of the same pid:
then every call raises ProcessGone. What it can see is what the kernel lets this user see: root has
registers and stacks of all threads from BPF, any other user what /proc says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import msgspec

from collector.arch.syscalls import syscall_name
from collector.arch.x86_64 import CODE_32_BIT
from collector.capture.image import decode_maps
from collector.elfcore.types import Mapping
from collector.errors import ProbeError, ProcessError, ProcessGone, Unreadable
from collector.introspect.folder import ProcFolder
from collector.introspect.types import (
    ProcessIdentity,
    Registers,
    Source,
    Stack,
    SystemCall,
    ThreadState,
)
from collector.linux import pidfd
from collector.linux.pagemap import Pagemap
from collector.linux.procfs import TICK_NS
from collector.model import ProcessKey
from collector.probe.iterators import decode_mappings
from collector.probe.live import LiveProbe, open_live
from collector.probe.stacks import ThreadStack

_USER_END = 1 << 47  # /proc/PID/mem takes no offset beyond, and nothing of a process is there
_MAX_MAPS = 64 << 20  # bytes


class Process:
    """See the module. Not thread-safe; several may look at the same process."""

    no_bpf: str | None  # why threads come from /proc alone; None: they come from BPF

    def __init__(self, pid: int, *, probe: LiveProbe | None = None, use_bpf: bool = True) -> None:
        """`probe`: one to share among many processes; it stays the caller's. Without one, root
        gets its own. `use_bpf=False`: /proc alone. ProcessGone if there is no such process.
        """
        self.pid = pid
        self._stack = contextlib.ExitStack()
        self._mem: int | None = None
        self._pagemap: Pagemap | None = None
        try:
            self._folder = ProcFolder(pid)
            self._stack.callback(self._folder.close)
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError as error:
                raise ProcessGone(f"process {pid} has ended") from error
            self._stack.callback(os.close, self._pidfd)
            self._folder.stat()  # it is still there: so the pidfd is of the same process
            self.no_bpf = None
            self._probe = probe
            if probe is None:
                self._open_probe(use_bpf)
        except BaseException:
            self._stack.close()
            raise

    def _open_probe(self, use_bpf: bool) -> None:
        if not use_bpf:
            self.no_bpf = "it was not asked for"
        elif os.geteuid() != 0:
            self.no_bpf = "it needs root"
        else:
            try:
                self._probe = self._stack.enter_context(open_live())
            except ProbeError as error:
                self.no_bpf = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors. Safe to call again."""
        self._stack.close()

    def fileno(self) -> int:
        """A descriptor for poll(2), readable when the process has ended (pidfd_open(2))."""
        return self._pidfd

    @property
    def key(self) -> ProcessKey:
        """Names the process for good: pid and start, the latter to a clock tick."""
        return ProcessKey(self.pid, self._folder.start_ns)

    @property
    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return not pidfd.has_ended(self._pidfd)

    @property
    def is_dying(self) -> bool:
        """Whether a signal is ending it: its core is being dumped, or has been.

        From /proc/PID/stat (`flags`) and CoreDumping of /proc/PID/status (proc(5)). Raises
        ProcessGone if it has ended.
        """
        return self._folder.is_dying()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it ends, or for `timeout` seconds; whether it has."""
        return pidfd.has_ended(self._pidfd, timeout)

    @property
    def no_clock(self) -> str | None:
        """Why running threads are never `exact`; None: they can be, or there is no BPF at all."""
        return None if self._probe is None else self._probe.no_clock

    def identity(self) -> ProcessIdentity:
        """Who it is. Of another user's process `exe` is None."""
        return self._folder.identity()

    def threads(self, *, stack: int = 0, wait_channels: bool = False) -> list[ThreadState]:
        """All threads in the order of their ids.

        `stack`: bytes of each stack, at most 64 KiB; from /proc alone only of sleeping threads.
        Stacks in memory behind userfaultfd(2) or FUSE may keep this waiting: see linux/stall.
        `wait_channels`: also ask /proc for each sleeping thread's place in the kernel: some 10 µs
        each, here and not there.
        """
        if self._probe is None:
            found = self._folder.threads(stack)
        else:
            found = [_state(thread) for thread in self._sample(self._probe, stack)]
        if wait_channels:
            found = [self._with_wait_channel(thread) for thread in found]
        return sorted(found, key=lambda thread: thread.tid)

    def _sample(self, probe: LiveProbe, stack: int) -> list[ThreadStack]:
        if self._folder.is_kernel():
            raise ProcessError(f"{self.pid} is a thread of the kernel: it has no registers")
        try:
            found = probe.sample(self.pid, stack)
        except ProbeError as error:
            if not self.alive:
                raise ProcessGone(f"process {self.pid} has ended") from None
            raise ProcessError(f"process {self.pid} cannot be listed: {error}") from error
        # the iterator knows the pid alone: this is how a later owner of it would be noticed
        if abs(found[0].process_start_ns - self._folder.start_ns) > 2 * TICK_NS:
            raise ProcessGone(f"process {self.pid} has ended")
        return found

    def _with_wait_channel(self, thread: ThreadState) -> ThreadState:
        channel = self._folder.wait_channel(thread.tid) if thread.state in "SDI" else None
        return msgspec.structs.replace(thread, wait_channel=channel)

    def wait_channel(self, tid: int) -> str | None:
        """The kernel's function in which a thread sleeps now; None: none, or it is kept secret."""
        return self._folder.wait_channel(tid)

    def mappings(self) -> list[Mapping]:
        """All mappings by address; from BPF with the kernel's flags, else as /proc/PID/maps."""
        if self._probe is None:
            return decode_maps(self._folder.read("maps", _MAX_MAPS))
        found = decode_mappings(self._probe.mappings(self.pid), None)
        if not self.alive:  # so the pid was its own until now
            raise ProcessGone(f"process {self.pid} has ended")
        return found

    def resident_bytes(self) -> int:
        """Resident memory (VmRSS of /proc/PID/status)."""
        return self._folder.resident_bytes()

    def cgroup(self) -> bytes:
        """Its cgroup in each hierarchy, the text of /proc/PID/cgroup (cgroups(7))."""
        return self._folder.cgroup()

    def descriptors(self) -> int:
        """How many file descriptors are open."""
        fd = self._folder.open("fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            # proc(5): since Linux 6.2 the size of the folder is their number
            return os.fstat(fd).st_size or len(os.listdir(fd))  # noqa: PTH208 (a descriptor)
        finally:
            os.close(fd)

    def auxv(self) -> bytes:
        """The auxiliary vector as the kernel gave it (getauxval(3))."""
        return self._folder.read("auxv")

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a file below /proc/PID, such as `root` (with O_PATH) or `exe`."""
        return self._folder.open(name, flags)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes of memory. Unreadable if any of them cannot be had."""
        if size < 0 or address < 0:
            raise ValueError(f"{size} bytes at {address:#x}")
        found = bytearray()
        again = True  # the descriptor of before an execve(2) reads nothing
        while len(found) < size:
            at = address + len(found)
            try:
                part = os.pread(self._memory(), size - len(found), at) if at < _USER_END else b""
            except OSError:
                part = b""
            if part:
                found += part
            elif again:
                again = False
                self._forget_memory()
            else:
                raise self._unreadable(at)
        return bytes(found)

    def _unreadable(self, address: int) -> ProcessError:
        if not self.alive:
            return ProcessGone(f"process {self.pid} has ended")
        return Unreadable(address, f"process {self.pid} has no readable memory at {address:#x}")

    def _memory(self) -> int:
        if self._mem is None:
            self._mem = self._folder.open("mem")
            self._stack.callback(self._forget_memory)
        return self._mem

    def _forget_memory(self) -> None:
        if self._mem is not None:
            os.close(self._mem)
        self._mem = None

    def populated(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The page ranges of [start, end) that exist, in memory or swap, zero pages excepted.

        Ask before reading large areas: a read of untouched memory allocates page tables there.
        """
        if not 0 <= start <= end <= _USER_END:
            raise ValueError(f"{start:#x}-{end:#x} is no range of a process")
        fd = self._folder.open("pagemap")
        try:
            yield from Pagemap(fd).populated(start & -4096, end + 4095 & -4096)
        except OSError as error:
            raise ProcessGone(f"process {self.pid} has ended") from error
        finally:
            os.close(fd)


def _state(thread: ThreadStack) -> ThreadState:
    registers = Registers(*thread.regs) if thread.regs is not None else None
    known = registers if thread.exact else None
    stack = Stack(thread.stack_address, thread.stack) if thread.exact and thread.stack else None
    return ThreadState(
        tid=thread.tid,
        name=thread.name,
        state=thread.state,
        source=Source.BPF,
        exact=thread.exact,
        time_ns=thread.time_ns,
        start_ns=thread.start_ns,
        on_cpu=thread.on_cpu,
        cpu=thread.cpu,
        runtime_ns=thread.runtime_ns,
        user_ns=thread.user_ns,
        system_ns=thread.system_ns,
        voluntary=thread.voluntary,
        involuntary=thread.involuntary,
        syscall=_syscall(known) if known else None,
        registers=registers,
        ip=registers.rip if registers else None,
        sp=registers.rsp if registers else None,
        stack=stack,
    )


def _syscall(r: Registers) -> SystemCall | None:
    """The system call by which a thread entered the kernel; else orig_rax is -1."""
    if r.orig_rax >> 63:
        return None
    args = r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9
    if r.cs == CODE_32_BIT:
        args = r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp
    return SystemCall(number=r.orig_rax, name=syscall_name(r.orig_rax, r.cs), args=args)
