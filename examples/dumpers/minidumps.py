"""A dumper that writes minidumps, for services that take those: Sentry, Socorro, Backtrace.

    python minidumps.py SOCKET FOLDER [--match FIELD=VALUE]... [--pin]

A minidump has the registers and stacks of all threads, the names and build ids of what is mapped,
and the signal: some hundred kilobytes, from which such a service makes backtraces with the symbols
that it has. Everything of the process is hostile, so all that is read of it is bounded.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from collector.dumpers.client import Client
from collector.dumpers.plugin import SPECIAL, HeldProcess
from collector.dumpers.protocol import Message
from collector.elfcore.types import Mapping, Thread
from collector.errors import CorewardError, Unreadable
from collector.minidump import file as mdmp

MAX_MEMORY = 16 << 20  # bytes of stacks in a file
MAX_FIRST, MAX_STACK = 1 << 20, 64 << 10  # bytes of the stack of the thread that died, of others
MAX_THREADS, MAX_MODULES = 4096, 4096
MAX_TEXT = 4 << 20  # bytes of maps, and of each other text
_STREAMS = 11
_RED_ZONE = 128  # bytes below the stack pointer that a function may use (System V psABI)
_AROUND_IP = 128  # bytes of code before and behind the instruction that failed

# elf(5)
_EHDR_PHDRS = struct.Struct("<32xQ14xHH")  # Elf64_Ehdr: e_phoff, e_phentsize, e_phnum
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_NOTE, _MAX_PHDRS = 1, 4, 64
_NHDR = struct.Struct("<III")
_GNU, _NT_GNU_BUILD_ID, _MAX_NOTES, _MAX_BUILD_ID = b"GNU\0", 3, 4096, 64

# siginfo_t (<asm-generic/siginfo.h>), and the signals that name an address there
_SIGINFO = struct.Struct("<iii4xQ")  # si_signo, si_errno, si_code, si_addr
_WITH_ADDRESS = {4, 5, 7, 8, 11}  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--match", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--pin", action="store_true")
    args = parser.parse_args()
    match = [tuple(one.split("=", 1)) for one in args.match]

    def dump(event: Message) -> str:
        process = HeldProcess(event)
        path = args.folder / f"{process.pid}.dmp"
        size = keep(minidump(process), path)
        print(f"{path.name}: {size} bytes", flush=True)
        return f"{size} bytes"

    with Client.connect(
        args.socket, "minidumps", priority=SPECIAL, match=match, pin=args.pin
    ) as client:
        print("registered", flush=True)
        client.dump_each(dump)


def keep(content: bytes, path: Path) -> int:
    """Make a file that is there as a whole or not at all; its size in bytes."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink()
            raise
    return len(content)


def minidump(process: HeldProcess) -> bytes:
    """The minidump of a process. Raises CorewardError if the event lacks its threads."""
    mappings, notes = process.mappings(), process.parsed_notes
    threads = notes.threads[:MAX_THREADS]
    limits = (limit for limit in (process.limit, process.core_limit) if limit is not None)
    file = mdmp.MinidumpFile(_STREAMS)
    file.system(_host())
    _add_threads(file, threads, _Memory(process, mappings, min((MAX_MEMORY, *limits))))
    first, info = threads[0], notes.siginfo or b""
    signal, code, address = process.signal or first.signal, 0, first.regs[mdmp.RIP]
    if len(info) >= _SIGINFO.size:
        number, _, code, at = _SIGINFO.unpack_from(info)
        address = at if number in _WITH_ADDRESS and code > 0 else address
    file.exception(first.tid, signal, code, address)
    file.modules(modules(process, mappings))
    file.process(
        process.pid,
        sum(thread.utime for thread in threads) // 1_000_000,
        sum(thread.stime for thread in threads) // 1_000_000,
    )
    file.stream(mdmp.LINUX_AUXV, notes.auxv or b"")
    file.stream(mdmp.LINUX_MAPS, _text(process, "maps"))
    words = [*map(os.fsencode, process.arguments), b""]
    file.stream(mdmp.LINUX_CMD_LINE, b"\0".join(words))
    file.stream(mdmp.LINUX_PROC_STATUS, _status(process))
    file.stream(mdmp.LINUX_CPU_INFO, Path("/proc/cpuinfo").read_bytes()[:MAX_TEXT])
    return file.content()


class _Memory:
    """Memory of a process for the file, bounded; no byte of it is there twice."""

    def __init__(self, process: HeldProcess, mappings: Sequence[Mapping], room: int) -> None:
        self._process, self._mappings, self._room = process, mappings, room
        self._starts = [m.start for m in mappings]
        self._taken: list[tuple[int, int]] = []

    def around(self, address: int, before: int, behind: int) -> tuple[int, bytes]:
        """So many bytes of one mapping, fewer where it ends or cannot be read; and from where."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._mappings[number].end:
            return address, b""
        inside = self._mappings[number]
        start = max(inside.start, address - before)
        end = min(inside.end, address + behind, start + self._room)
        if any(low < end and start < high for low, high in self._taken):
            return start, b""
        data = readable(self._process, start, end - start)
        self._taken.append((start, start + len(data)))
        self._room -= len(data)
        return start, data


def _add_threads(file: mdmp.MinidumpFile, threads: Sequence[Thread], memory: _Memory) -> None:
    """With their stacks, as far as there is room, and the code where the first one stopped."""
    stacks: list[mdmp.Stack] = []
    for thread in threads:
        below = max(0, thread.regs[mdmp.RSP] - _RED_ZONE) & -16
        start, data = memory.around(below, 0, MAX_STACK if stacks else MAX_FIRST)
        stack = mdmp.Memory(start, len(data), data)
        stacks.append(mdmp.Stack(thread.tid, thread.regs, thread.xstate or b"", stack))
    file.threads(stacks)
    start, code = memory.around(threads[0].regs[mdmp.RIP], _AROUND_IP, _AROUND_IP)
    if code:
        file.memory(mdmp.Memory(start, len(code), code))
    file.memory_list()


def modules(process: HeldProcess, mappings: Sequence[Mapping]) -> list[mdmp.Module]:
    """What is mapped of ELF files, the program first; the vdso by the name that readers know."""
    found: list[mdmp.Module] = []
    path: str | None = None  # of the last one, as long as parts of it may follow
    for m in mappings:
        if not m.path:  # its .bss, or a gap
            continue
        if m.path == path and m.offset:
            found[-1] = found[-1]._replace(size=m.end - found[-1].base)
            continue
        path = None
        vdso = m.path == "[vdso]"
        if len(found) == MAX_MODULES or not (vdso or (m.path[0] == "/" and not m.offset)):
            continue
        if readable(process, m.start, 4) == b"\x7fELF":
            path, name = m.path, "linux-gate.so" if vdso else m.path
            build_id = build_id_at(process, m.start)
            found.append(mdmp.Module(m.start, m.end - m.start, name, build_id))
    return sorted(found, key=lambda module: module.path != process.exe)


def build_id_at(process: HeldProcess, base: int) -> bytes:
    """The build id of an ELF file that is mapped there; empty: none in what is mapped."""
    head = readable(process, base, 64)
    if len(head) < _EHDR_PHDRS.size:
        return b""
    offset, size, count = _EHDR_PHDRS.unpack_from(head)
    if size != _PHDR.size or count > _MAX_PHDRS or offset > MAX_TEXT:
        return b""
    table = readable(process, base + offset, size * count)
    headers = list(_PHDR.iter_unpack(table[: len(table) // size * size]))
    # addresses are those of the file, whose first byte is at `base`
    load = next((h[3] - h[2] for h in headers if h[0] == _PT_LOAD), 0)
    for kind, _, _, address, _, length, _, _ in headers:
        if kind == _PT_NOTE and address >= load:
            at = base + address - load
            if found := _build_id_in(readable(process, at, min(length, _MAX_NOTES))):
                return found
    return b""


def _build_id_in(notes: bytes) -> bytes:
    at = 0
    while at + _NHDR.size <= len(notes):
        name_size, size, kind = _NHDR.unpack_from(notes, at)
        at += _NHDR.size
        name, at = notes[at : at + name_size], at + (name_size + 3 & -4)
        if name == _GNU and kind == _NT_GNU_BUILD_ID and size <= _MAX_BUILD_ID:
            return notes[at : at + size]
        at += size + 3 & -4
    return b""


def readable(process: HeldProcess, address: int, size: int) -> bytes:
    """As much of that memory as can be read from its beginning."""
    try:
        return process.read(address, size)
    except Unreadable as error:
        there = error.address - address
        return process.read(address, there) if there > 0 else b""
    except ValueError:  # no address
        return b""


def _text(process: HeldProcess, name: str) -> bytes:
    """A text that comes with the event: others read the same descriptor, so not by read(2)."""
    found = bytearray()
    with contextlib.suppress(CorewardError):  # it did not come
        fd = process.fileno(name)
        while len(found) < MAX_TEXT and (part := os.pread(fd, 64 << 10, len(found))):
            found += part
    return bytes(found)


def _status(process: HeldProcess) -> bytes:
    """/proc/PID/status, of a process that waits."""
    with contextlib.suppress(CorewardError, OSError):
        fd = os.open("status", os.O_RDONLY, dir_fd=process.fileno("proc"))
        with open(fd, "rb") as file:
            return file.read(MAX_TEXT)
    return b""


def _host() -> mdmp.System:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    about = {key.strip(): value.strip() for key, _, value in pairs}
    model, stepping = int(about.get("model") or 0), int(about.get("stepping") or 0)
    uname = os.uname()
    numbers = [int(part) for part in uname.release.split("-")[0].split(".") if part.isdecimal()]
    major, minor, patch, *_ = (*numbers, 0, 0, 0)
    return mdmp.System(
        cpus=os.cpu_count() or 1,
        family=int(about.get("cpu family") or 0),
        revision=(model & 0xFF) << 8 | stepping & 0xFF,
        vendor=about.get("vendor_id", "").encode()[:12],
        release=(major, minor, patch),
        version=" ".join((uname.sysname, uname.release, uname.version, uname.machine)),
    )


if __name__ == "__main__":
    main()
