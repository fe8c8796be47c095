"""The minidump of a core, with what a record knows besides.

All is taken from the core, never from this machine: it may be another one. What neither knows is
left out, or is 0 where the format has a field for it. Registers of vectors beyond SSE are not in
the format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from collector.arch.x86_64 import IP, PAGE
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Prot, Thread
from collector.errors import CoreFormatError
from collector.explain.mapped import build_id_in_memory, mapped_objects
from collector.explain.places import Places
from collector.minidump import file as mdmp
from collector.minidump.environment import environment
from collector.minidump.memory import Stacks
from collector.model import Record

MAX_THREADS, MAX_MODULES = 65536, 4096
_MAX_LINES = 65536  # of maps
_STREAMS = 12
_AT_PHDR, _AT_SYSINFO_EHDR = 3, 33  # <elf.h>
_VDSO = "linux-gate.so"  # as readers know it, Breakpad's name
_RELEASE = re.compile(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?")
_VENDORS = {"intel": b"GenuineIntel", "amd": b"AuthenticAMD"}
_SIGINFO = struct.Struct("<iii4xQ")  # si_signo, si_errno, si_code, si_addr
_WITH_ADDRESS = {4, 5, 7, 8, 11}  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV


class Minidump:
    """A minidump that can be written, as long as its core is open."""

    def __init__(self, core: CoreFile, record: Record) -> None:
        """CoreFormatError if the core has no threads."""
        if not core.threads:
            raise CoreFormatError(f"{core.path}: it has no threads")
        self._core, self._record = core, record
        self._file = mdmp.MinidumpFile(_STREAMS)
        threads = core.threads[:MAX_THREADS]
        stacks = Stacks(core.segments, core.size)
        self._file.system(_system(record))
        self._file.threads(
            [_stack(one, stacks, record, first=number == 0) for number, one in enumerate(threads)]
        )
        self._file.memory_list()
        self._exception(threads[0])
        self._file.modules(list(self._modules()))
        self._process(threads)
        self._texts()
        self.cut = stacks.cut  # threads whose stacks are not there as a whole
        self.left_out = len(core.threads) - len(threads)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def parts(self) -> Iterator[bytes]:
        """The file. CoreFormatError if the core is damaged."""
        return self._file.parts(self._core.read, self._record.time.timestamp())

    def _exception(self, first: Thread) -> None:
        signal, code, address = first.signal or self._record.signal or 0, 0, first.regs[IP]
        info = self._core.siginfo or b""
        if self._record.snapshot is not None:
            signal = mdmp.DUMP_REQUESTED
        elif len(info) >= _SIGINFO.size:
            number, _, code, at = _SIGINFO.unpack_from(info)
            signal = number or signal
            address = at if number in _WITH_ADDRESS and code > 0 else address
        self._file.exception(first.tid, signal, code, address)

    def _modules(self) -> Iterator[mdmp.Module]:
        """The program first; the one that the kernel maps last."""
        core = self._core
        known = {one.module: one.build_id for one in self._record.frames or [] if one.build_id}
        segments = [placed.segment for placed in core.segments]
        auxv = _auxv(core)
        program, vdso = auxv.get(_AT_PHDR, 0), auxv.get(_AT_SYSINFO_EHDR, 0)
        objects = mapped_objects(core.notes.files or (), segments)[:MAX_MODULES]
        for one in sorted(objects, key=lambda one: not one.start <= program < one.end):
            found = build_id_in_memory(core.read, one.start) or known.get(one.path) or ""
            yield mdmp.Module(one.start, one.end - one.start, one.path, bytes.fromhex(found))
        size = next((m.size for m in core.mappings if m.start == vdso), PAGE)
        if vdso and (own := build_id_in_memory(core.read, vdso)):
            yield mdmp.Module(vdso, size, _VDSO, bytes.fromhex(own))

    def _process(self, threads: tuple[Thread, ...]) -> None:
        record, psinfo = self._record, self._core.notes.psinfo
        self._file.process(
            psinfo.pid if psinfo is not None else record.pid,
            sum(one.utime for one in threads) // 1_000_000,
            sum(one.stime for one in threads) // 1_000_000,
            0 if record.age_s is None else int(record.time.timestamp() - record.age_s),
        )

    def _texts(self) -> None:
        """What a reader of Linux's minidumps would have read in /proc."""
        core, record, file = self._core, self._record, self._file
        psinfo = core.notes.psinfo
        words = record.cmdline
        if words is None and psinfo is not None:
            words = [psinfo.psargs.decode("utf-8", "replace")]
        if words:
            raw = (word.encode("utf-8", "surrogateescape") for word in words)
            file.stream(mdmp.LINUX_CMD_LINE, b"".join(one + b"\0" for one in raw))
        if core.auxv:
            file.stream(mdmp.LINUX_AUXV, core.auxv)
        file.stream(mdmp.LINUX_MAPS, b"".join(_maps(core)))
        file.stream(mdmp.LINUX_PROC_STATUS, _status(core, record))
        variables = environment(core.auxv or b"", core.read)
        if variables:
            file.stream(mdmp.LINUX_ENVIRON, variables)


def _stack(thread: Thread, stacks: Stacks, record: Record, *, first: bool) -> mdmp.Stack:
    name = thread.name or (record.thread_name or "" if first else "")
    memory = stacks.take(thread, first=first)
    return mdmp.Stack(thread.tid, thread.regs, thread.xstate or b"", memory, name)


def _system(record: Record) -> mdmp.System:
    """The host, as far as the record names it."""
    kernel = "" if record.host is None else record.host.kernel
    cpu = "" if record.host is None else (record.host.cpu or "")
    numbers = _RELEASE.match(kernel)
    major, minor, patch = (int(n or 0) & 0xFFFF for n in numbers.groups()) if numbers else (0, 0, 0)
    return mdmp.System(
        cpus=0,
        family=0,
        revision=0,
        vendor=next((v for word, v in _VENDORS.items() if word in cpu.lower()), b""),
        release=(major, minor, patch),
        version=f"Linux {kernel} x86_64" if kernel else "Linux",
    )


def _auxv(core: CoreFile) -> dict[int, int]:
    raw = core.auxv or b""
    return dict(struct.iter_unpack("<QQ", raw[: len(raw) & -16]))


def _maps(core: CoreFile) -> Iterator[bytes]:
    """Lines as of /proc/PID/maps. Devices and inodes are not known, nor what is shared."""
    mappings = core.mappings[:_MAX_LINES]
    places = Places(mappings, core.auxv)
    for m in mappings:
        letters = "".join(
            letter if m.prot & bit else "-"
            for letter, bit in (("r", Prot.R), ("w", Prot.W), ("x", Prot.X))
        )
        named = None if m.path else places.at(m.start)  # [stack], [vdso]
        name = m.path or (named.name if named else None) or ""
        path = name.replace("\n", "\\012").encode("utf-8", "surrogateescape")
        line = f"{m.start:08x}-{m.end:08x} {letters}p {m.offset:08x} 00:00 0"
        yield (line.encode().ljust(73) + path if path else line.encode()) + b"\n"


def _status(core: CoreFile, record: Record) -> bytes:
    """Lines as of /proc/PID/status: those that are known."""
    psinfo = core.notes.psinfo
    pid = psinfo.pid if psinfo is not None else record.pid
    ppid = psinfo.ppid if psinfo is not None else record.ppid
    name = record.comm.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [f"Name:\t{name}", f"Tgid:\t{pid}", f"Pid:\t{core.threads[0].tid}"]
    lines += [] if ppid is None else [f"PPid:\t{ppid}"]
    for key, number in (("Uid", record.uid), ("Gid", record.gid)):
        lines += [] if number is None else [f"{key}:\t{number}\t{number}\t{number}\t{number}"]
    lines.append(f"Threads:\t{len(core.threads)}")
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
