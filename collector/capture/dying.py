"""A process while it is held: all that must be learnt before it may go.

Reading is kept to what is gone afterwards: identity, mappings, registers, and the few words of
memory that the kernel's exit path alters. Descriptors stay usable after the release: `mem` and
`pagemap` for as long as a pin holds, `exe` and `root` without. Decoding is left to the process
that writes the core.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType

import msgspec

from collector.capture import vmread
from collector.errors import CaptureError
from collector.model import ProcessKey

_MAX_FILE = 16 << 20  # of any text of /proc: a maps file of 65,530 mappings has 6 MiB
_MAX_CMDLINE = 16 << 10
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_AT_PHDR, _AT_SYSINFO_EHDR = 3, 33  # <elf.h>
_WORD = 4  # bytes of a tid word or futex
_CLOSE = 256  # bytes between a tid word and a list's head that are read at once
_MAX_ROBUST = 2048  # ROBUST_LIST_LIMIT of <linux/futex.h>


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of memory as they were before exit changed them."""

    address: int
    data: bytes


class ProcText(msgspec.Struct, frozen=True, kw_only=True):
    """Files of /proc/PID, verbatim, read while the process was held."""

    stat: bytes
    status: bytes
    cmdline: bytes
    auxv: bytes
    cgroup: bytes
    coredump_filter: bytes
    maps: bytes | None  # only where BPF does not tell the mappings with their paths


class Dying:
    """Open descriptors and facts of one held process. A context manager; closing ends its use.

    Raises CaptureError when the process is gone or is not the one that was announced.
    """

    def __init__(self, pid: int, *, with_maps: bool) -> None:
        self.pid = pid
        self._fds: list[int] = []
        try:
            self._open(with_maps)
        except OSError as error:
            self.close()
            raise CaptureError(f"process {pid} left before it could be read: {error}") from error

    def _open(self, with_maps: bool) -> None:
        # one look-up of the pid: all else goes through this directory, whoever gets the pid next
        self.dir_fd = self._keep(os.open(f"/proc/{self.pid}", os.O_PATH | os.O_DIRECTORY))
        self.mem_fd = self._keep(os.open("mem", os.O_RDONLY, dir_fd=self.dir_fd))
        self.pagemap_fd = self._keep(os.open("pagemap", os.O_RDONLY, dir_fd=self.dir_fd))
        self.root_fd = self._keep(os.open("root", os.O_PATH, dir_fd=self.dir_fd))
        self.text = ProcText(
            stat=self._read("stat"),
            status=self._read("status"),
            cmdline=self._read("cmdline", _MAX_CMDLINE),
            auxv=self._read("auxv"),
            cgroup=self._read("cgroup"),
            coredump_filter=self._read("coredump_filter"),
            maps=self._read("maps") if with_maps else None,
        )
        self.exe_fd = self._keep_if("exe", os.O_PATH)
        # the mounts below its root are there only as long as somebody is in their namespace
        self.mount_fd = self._keep_if("ns/mnt", os.O_RDONLY)

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
            parts, left = [], limit
            while left > 0 and (part := os.read(fd, min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def open_shared(self, ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Descriptors of the files behind shared mappings: address of the mapping -> fd.

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
        return 1024 * (
            _status_number(self.text.status, b"VmRSS:")
            + _status_number(self.text.status, b"HugetlbPages:")
        )

    @property
    def uid(self) -> int:
        return _status_number(self.text.status, b"Uid:")

    @property
    def gid(self) -> int:
        return _status_number(self.text.status, b"Gid:")

    @property
    def comm(self) -> str:
        stat = self.text.stat
        return os.fsdecode(stat[stat.index(b"(") + 1 : stat.rindex(b")")])

    @property
    def start_ticks(self) -> int:
        """Start time in clock ticks since boot: field 22 of /proc/PID/stat."""
        return int(self.text.stat[self.text.stat.rindex(b")") + 2 :].split()[19])

    def is_process(self, key: ProcessKey) -> bool:
        """Whether this is the process that an event spoke of, and not a later one of its pid."""
        return self.pid == key.pid and abs(self.start_ticks - key.start_ns // _TICK_NS) <= 1

    @property
    def key(self) -> ProcessKey:
        """Its key as far as /proc tells: exact to a clock tick."""
        return ProcessKey(self.pid, self.start_ticks * _TICK_NS)

    @property
    def cmdline(self) -> list[str]:
        words = self.text.cmdline.rstrip(b"\0").split(b"\0")
        return [os.fsdecode(word) for word in words] if words != [b""] else []

    @property
    def core_limit(self) -> int | None:
        """The soft RLIMIT_CORE in bytes; None: unlimited."""
        soft, _ = resource.prlimit(self.pid, resource.RLIMIT_CORE)
        return None if soft == resource.RLIM_INFINITY else soft

    def close(self) -> None:
        """Close every descriptor. Safe to call again."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Dying:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _status_number(status: bytes, field: bytes) -> int:
    at = status.find(b"\n" + field)
    return int(status[at + len(field) + 1 :].split(None, 1)[0]) if at >= 0 else 0


def exit_patches(pid: int, words: Sequence[tuple[int, int]]) -> list[Patch]:
    """Copies of what exit will change, taken before: one (tid address, robust list) per thread.

    A pinned address space outlives its threads, and mm_release() (kernel/fork.c) then clears each
    thread's `clear_child_tid` word and marks the robust futexes that it holds
    (Documentation/locking/robust-futexes.rst). Addresses of 0 mean that there is none.
    """
    distances = {head - tid for tid, head in words}
    apart = distances.pop() if len(distances) == 1 else 0
    if _WORD <= apart <= _CLOSE:
        return _patches_read_together(pid, words, apart)
    return _patches_read_apart(pid, words)


def _patches_read_together(pid: int, words: Sequence[tuple[int, int]], apart: int) -> list[Patch]:
    """Where each list's head is `apart` bytes behind the tid word: one read gets both.

    So it is with C libraries, which keep both in the thread's control block.
    """
    layout = struct.Struct(f"<{apart}xQqQ")  # struct robust_list_head
    patches: list[Patch] = []
    unreadable = []
    found = _read_words(pid, [tid for tid, _ in words], layout.size)
    for (tid, head), data in zip(words, found, strict=True):
        if data:
            patches.append(Patch(tid, data[:_WORD]))
            following, offset, pending = layout.unpack(data)
            if following != head or pending:
                patches += _robust_patches(pid, head, following, offset, pending)
        else:
            unreadable.append((tid, head))
    return patches + _patches_read_apart(pid, unreadable)


def _patches_read_apart(pid: int, words: Sequence[tuple[int, int]]) -> list[Patch]:
    tid_words = [address for address, _ in words if address]
    patches = [
        Patch(address, data)
        for address, data in zip(tid_words, _read_words(pid, tid_words, _WORD), strict=True)
        if data
    ]
    heads = [head for _, head in words if head]
    for head, data in zip(heads, _read_words(pid, heads, 24), strict=True):
        if data:
            following, offset, pending = struct.unpack("<QqQ", data)
            if following != head or pending:
                patches += _robust_patches(pid, head, following, offset, pending)
    return patches


def _robust_patches(pid: int, head: int, entry: int, offset: int, pending: int) -> list[Patch]:
    locks = [pending] if pending else []
    while entry != head and entry and len(locks) < _MAX_ROBUST:
        locks.append(entry)
        data = _read_words(pid, [entry & ~1], 8)[0]
        entry = int.from_bytes(data, "little") if len(data) == 8 else 0
    futexes = [((lock & ~1) + offset) & ((1 << 64) - 1) for lock in locks]
    found = zip(futexes, _read_words(pid, futexes, 4), strict=True)
    return [Patch(address, data) for address, data in found if len(data) == 4]


def _read_words(pid: int, addresses: Sequence[int], size: int) -> list[bytes]:
    """`size` bytes at each address by process_vm_readv(2), many per call; b"" where unreadable."""
    out: list[bytes] = []
    buffer = ctypes.create_string_buffer(size * vmread.IOV_MAX)
    for first in range(0, len(addresses), vmread.IOV_MAX):
        group = addresses[first : first + vmread.IOV_MAX]
        while group:
            remote = struct.pack(f"<{2 * len(group)}Q", *(v for a in group for v in (a, size)))
            local = struct.pack("<QQ", ctypes.addressof(buffer), size * len(group))
            whole = vmread.read(pid, local, remote, len(group)) // size
            data = buffer.raw
            out += [data[i * size : (i + 1) * size] for i in range(whole)]
            group = group[whole:]
            if group:  # it stops at the first unreadable address: skip that one
                out.append(b"")
                group = group[1:]
    return out


def pin_addresses(auxv: bytes, stack_pointer: int | None) -> list[int]:
    """Addresses that can be read in almost any process: its program headers, its vdso, its stack.

    From the auxiliary vector (getauxval(3)): AT_PHDR and AT_SYSINFO_EHDR.
    """
    aux = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & -16]))
    found = [aux.get(_AT_PHDR), stack_pointer, aux.get(_AT_SYSINFO_EHDR)]
    return [address for address in found if address]
