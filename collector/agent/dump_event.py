"""What a dumper is told of a process: facts, and descriptors of its files (docs/dumpers.md).

Descriptors are sent as copies; those that were made for the event are closed with it. What an
anonymous file holds cannot be changed by whoever gets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from types import TracebackType
from typing import Self

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.write import most_read
from collector.capture.image import image_of_evidence
from collector.dumpers.protocol import Message, message
from collector.elfcore.notes import build_notes
from collector.elfcore.types import Mapping, Prot
from collector.errors import CorewardError
from collector.probe.iterators import decode_mappings

_MAX_PROBED = 1 << 20  # bytes of threads' records; with more of them a probe has no notes
_MAX_NOTES = 64 << 20  # of which notes are made at all
_MAX_MAPPINGS = 16 << 20  # bytes of their records, of which a text is made
_MAX_ARGUMENTS, _MAX_ARGUMENT = 32, 128  # characters
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PATH_AT = 73  # column of the path in a line of maps
_WORD = struct.Struct("<QI4x")


class Event:
    """One process for one message. A context manager: the message is sent inside of it."""

    def __init__(self, context: Context, crash: Crash, *, held: bool) -> None:
        self._context, self._crash, self._held = context, crash, held
        self._made = contextlib.ExitStack()

    def probe(self) -> Message:
        """With what an answer within milliseconds can be told from."""
        threads = self._crash.gathered.threads
        return self._message(notes=threads is None or len(threads) <= _MAX_PROBED)

    def dump(self) -> Message:
        """With all there is."""
        return self._message(notes=True)

    def _message(self, *, notes: bool) -> Message:
        facts = self._facts()
        fds = self._fds()
        if notes:
            self._add_notes(fds)
        return Message(facts.verb, facts.fields, fds)

    def _facts(self) -> Message:
        crash, gathered, decided = self._crash, self._crash.gathered, self._crash.decided
        dying, facts, seen = gathered.dying, decided.facts, crash.seen
        told = message(
            "EVENT",
            pid=gathered.handoff.pid,
            tid=seen.who.tid if seen.who else None,
            ns_pid=dying.ns_pid,
            ns_tid=seen.who.ns_tid if seen.who else None,
            start_ns=crash.key.start_ns,
            comm=dying.comm,
            exe=facts.exe,
            uid=dying.uid,
            gid=dying.gid,
            unit=facts.unit,
            cgroup=facts.cgroup,
            container=facts.container,
            signal=facts.signal,
            resident=dying.resident if gathered.resident is None else gathered.resident,
            rlimit_core=dying.core_limit,
            coredump_filter=dying.text.coredump_filter.decode("ascii", "replace").strip(),
            limit=most_read(self._context, crash),
        )
        words = [("arg", word[:_MAX_ARGUMENT]) for word in dying.cmdline[:_MAX_ARGUMENTS]]
        return Message(told.verb, (*told.fields, *words))

    def _fds(self) -> dict[str, int]:
        gathered = self._crash.gathered
        dying = gathered.dying
        found = {
            "pidfd": gathered.handoff.pidfd if self._held else -1,
            "proc": dying.dir_fd if self._held else -1,
            "mem": dying.mem_fd,
            "pagemap": dying.pagemap_fd,
            "root": dying.root_fd,
            "exe": -1 if dying.exe_fd is None else dying.exe_fd,
            "maps": self._maps(),
        }
        if gathered.mappings is not None:
            found["mappings"] = self._file("mappings", gathered.mappings)
        if not self._held and gathered.patches:
            words = ((p.address, int.from_bytes(p.data[:4], "little")) for p in gathered.patches)
            found["words"] = self._file("words", b"".join(_WORD.pack(*word) for word in words))
        return {name: fd for name, fd in found.items() if fd >= 0}

    def _maps(self) -> int:
        """The text of /proc/PID/maps: the file itself, as long as the process is there."""
        gathered = self._crash.gathered
        if self._held:
            try:
                fd = os.open("maps", os.O_RDONLY, dir_fd=gathered.dying.dir_fd)
            except OSError:
                return -1
            self._made.callback(os.close, fd)
            return fd
        raw = gathered.mappings
        if raw is None or len(raw) > _MAX_MAPPINGS:
            return -1
        try:
            lines = map(maps_line, decode_mappings(raw, gathered.dying.text.maps))
        except CorewardError:
            return -1
        return self._file("maps", "".join(lines).encode("utf-8", "surrogateescape"))

    def _add_notes(self, fds: dict[str, int]) -> None:
        crash, gathered = self._crash, self._crash.gathered
        if gathered.threads is not None and len(gathered.threads) > _MAX_NOTES:
            return
        with contextlib.suppress(CorewardError, ValueError):  # then there are none
            fds["notes"] = self._file("notes", build_notes(image_of_evidence(crash.evidence)))

    def _file(self, name: str, data: bytes | memoryview) -> int:
        """An anonymous file that nobody can change. Others read it as well: by pread(2)."""
        fd = os.memfd_create(f"coreward-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._made.callback(os.close, fd)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._made.close()


def maps_line(m: Mapping) -> str:
    """A mapping as a line of /proc/PID/maps (proc_pid_maps(5)), with its newline."""
    bits = ((Prot.R, "r"), (Prot.W, "w"), (Prot.X, "x"))
    permissions = "".join(letter if m.prot & bit else "-" for bit, letter in bits)
    permissions += "s" if m.shared else "p"
    device = f"{m.device >> 20:02x}:{m.device & 0xFFFFF:02x}"
    line = f"{m.start:08x}-{m.end:08x} {permissions} {m.offset:08x} {device} {m.inode} "
    if m.path:
        line = line.ljust(_PATH_AT) + m.path.replace("\n", "\\012")
    return line + "\n"
