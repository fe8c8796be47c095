"""A process that a dumper was asked about, or has: looked at through the descriptors of the event.

    process = HeldProcess(event)
    process.name, process.arguments, process.exe, process.signal
    process.threads()[0].regs
    process.mappings()
    process.read(address, size)

It stands still, or has gone and its memory is pinned; so nothing here stops or disturbs it. What it
holds is hostile: names, memory, timing. A read of memory behind userfaultfd(2) or FUSE may keep its
reader waiting; a dumper is bounded by `hold.max`, and a plugin by its timeout.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import cached_property

import msgspec

from collector.capture.image import decode_maps
from collector.dumpers.protocol import Message
from collector.elfcore.notes import parse_notes
from collector.elfcore.types import Mapping, ParsedNotes, Prot, Thread
from collector.errors import ProcessError, Unreadable
from collector.linux.pagemap import Pagemap
from collector.probe.iterators import decode_mappings

_USER_END = 1 << 47  # /proc/PID/mem takes no offset beyond
_MAX_FILE = 512 << 20  # bytes of any file of the event
_WORD = struct.Struct("<QI4x")


class HeldProcess:
    """The process of a PROBE or a DUMP. The event's descriptors stay the event's."""

    def __init__(self, event: Message) -> None:
        self._event = event
        self.pid = event.number("pid", 1, 1 << 31)
        self.tid = self._number("tid")  # the dying thread; None: not known
        self.ns_pid, self.ns_tid = self._number("ns_pid"), self._number("ns_tid")  # in its own
        self.start_ns = self._number("start_ns")
        self.name = event.get("comm") or ""
        self.exe = event.get("exe")
        self.arguments = event.all("arg")
        self.uid, self.gid = self._number("uid"), self._number("gid")
        self.unit, self.cgroup = event.get("unit"), event.get("cgroup")
        self.signal = self._number("signal")
        self.resident = self._number("resident")  # bytes
        self.held = event.flag("held")  # it waits; else its memory is pinned
        self.core_limit = self._number("rlimit_core")  # RLIMIT_CORE, bytes; None: unlimited
        self.limit = self._number("limit")  # bytes that policy lets be kept; None: no limit

    def _number(self, key: str) -> int | None:
        return None if self._event.get(key) is None else self._event.number(key, 0, 1 << 63)

    def fileno(self, name: str) -> int:
        """A descriptor of the event. Raises ProcessError if it did not come."""
        fd = self._event.fds.get(name)
        if fd is None:
            raise ProcessError(f"process {self.pid}: its {name} could not be had")
        return fd

    @property
    def coredump_filter(self) -> int | None:
        """/proc/PID/coredump_filter (core(5)); None: not known."""
        try:
            return int(self._event.get("coredump_filter") or "", 16)
        except ValueError:
            return None

    @cached_property
    def notes(self) -> bytes:
        """The body of a core's PT_NOTE. Raises ProcessError if it did not come."""
        return self._content("notes")

    @cached_property
    def parsed_notes(self) -> ParsedNotes:
        """The same as values. Also raises CoreFormatError."""
        return parse_notes(self.notes)

    def threads(self) -> tuple[Thread, ...]:
        """All threads with their registers, the dying one first. Raises as `parsed_notes` does:
        a PROBE of a process with hundreds of threads has none."""
        return self.parsed_notes.threads

    @cached_property
    def _mappings(self) -> list[Mapping]:
        text = self._content("maps") if "maps" in self._event.fds else None
        if "mappings" in self._event.fds:
            return decode_mappings(self._content("mappings"), text)
        if text is None:
            raise ProcessError(f"process {self.pid}: its mappings could not be had")
        return [_guessed(m) for m in decode_maps(text)]

    def mappings(self) -> list[Mapping]:
        """All mappings by address. Raises ProcessError if they could not be had."""
        return self._mappings

    def words(self) -> list[tuple[int, bytes]]:
        """Words of pinned memory that the end of its threads has changed: address and content."""
        if "words" not in self._event.fds:
            return []
        raw = self._content("words")
        found = _WORD.iter_unpack(raw[: len(raw) // _WORD.size * _WORD.size])
        return [(address, value.to_bytes(4, "little")) for address, value in found]

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes of memory. Unreadable, with the first byte that cannot be had."""
        if size < 0 or address < 0:
            raise ValueError(f"{size} bytes at {address:#x}")
        found = bytearray()
        while len(found) < size:
            at = address + len(found)
            try:
                mem = self.fileno("mem")
                part = os.pread(mem, size - len(found), at) if at < _USER_END else b""
            except OSError:
                part = b""
            if not part:
                raise Unreadable(at, f"process {self.pid} has no readable memory at {at:#x}")
            found += part
        return bytes(found)

    def populated(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The page ranges of [start, end) that exist, in memory or swap, zero pages excepted."""
        if not 0 <= start <= end <= _USER_END:
            raise ValueError(f"{start:#x}-{end:#x} is no range of a process")
        try:
            pagemap = Pagemap(self.fileno("pagemap"))
            yield from pagemap.populated(start & -4096, end + 4095 & -4096)
        except OSError as error:
            raise ProcessError(f"process {self.pid} has gone: {error.strerror}") from error

    def _content(self, name: str) -> bytes:
        """A file of the event from its beginning; others have the same one open."""
        fd, found = self.fileno(name), bytearray()
        while part := os.pread(fd, 1 << 20, len(found)):
            found += part
            if len(found) > _MAX_FILE:
                raise ProcessError(
                    f"process {self.pid}: its {name} are more than {_MAX_FILE} bytes"
                )
        return bytes(found)


def _guessed(m: Mapping) -> Mapping:
    """What only the kernel's flags tell, where there is no BPF: memory that may be its own is."""
    own = not m.shared and (not m.inode or bool(m.prot & Prot.W))
    return msgspec.structs.replace(m, anon_vma=own, special=m.path == "[vdso]")
