"""The minidump file format: streams, and the structures in them, as bytes.

A minidump has a header, a directory of streams, and streams; all that is longer than a structure
stands elsewhere in the file, and is referred to by its size and its offset ("RVA"). The structures
are those of minidumpapiset.h (Microsoft) with what Breakpad has added for Linux
(minidump_format.h), which Sentry, Socorro and Backtrace read. Not here: where the facts come from.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# MINIDUMP_STREAM_TYPE; those of Linux are Breakpad's
THREAD_LIST, MODULE_LIST, MEMORY_LIST, EXCEPTION, SYSTEM_INFO, MISC_INFO = 3, 4, 5, 6, 7, 15
THREAD_NAMES = 24
LINUX_CPU_INFO, LINUX_PROC_STATUS, LINUX_CMD_LINE = 0x47670003, 0x47670004, 0x47670006
LINUX_ENVIRON, LINUX_AUXV, LINUX_MAPS = 0x47670007, 0x47670008, 0x47670009
DUMP_REQUESTED = 0xFFFFFFFF  # instead of a signal: the process did not die (Breakpad)

AMD64, LINUX = 9, 0x8201  # processor architecture, platform
_SIGNATURE, _VERSION = b"MDMP", 0xA793
_HEADER = struct.Struct("<4sIIIIIQ")  # signature, version, streams, RVA of the directory, ...
_ENTRY = struct.Struct("<III")  # type, size, RVA
_PLACE = struct.Struct("<II")  # size, RVA
_MEMORY = struct.Struct("<QII")  # address, size, RVA
_NAME = struct.Struct("<IQ")  # of a thread: id, RVA
_THREAD = struct.Struct("<IIIIQQIIII")  # id, 3 of Windows, TEB, stack, place of its registers
_MODULE = struct.Struct("<QIIII52xIIII16x")  # base, size, 2 of Windows, name, CodeView, misc
_SYSTEM = struct.Struct("<HHHBBIIIIIHH12sIII")
_EXCEPTION = struct.Struct("<I4xIIQQI4x120xII")  # thread, signal, si_code, 0, address, 0, registers
_MISC = struct.Struct("<IIIIII")  # size, flags, process, times: created, user, system (seconds)
_MISC_PROCESS_ID, _MISC_TIMES = 1, 2
_BUILD_ID = b"LEpB"  # MD_CVINFOELF_SIGNATURE: what follows is a build id

# CONTEXT_AMD64: 6 of Windows, flags, mxcsr, segments, eflags, debug registers, the rest
_CONTEXT = struct.Struct("<48xII6HI48x17Q512s464x")
_CONTEXT_FLAGS = 0x10000F  # AMD64, with control, integer, segment and floating point registers
_FXSAVE = 512
_BLOCK = 1 << 20
_U32 = 0xFFFFFFFF  # ids and times may be anything in a damaged core
_MXCSR_AT = 24  # in the FXSAVE area

# Words of struct user_regs_struct (<sys/user.h>), in which cores have registers
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI = range(15)
RIP, CS, EFLAGS, RSP, SS, DS, ES, FS, GS = 16, 17, 18, 19, 20, 23, 24, 25, 26
_INTEGERS = (
    *(RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI),
    *(R8, R9, R10, R11, R12, R13, R14, R15, RIP),
)

assert _THREAD.size == 48
assert _MODULE.size == 108
assert _SYSTEM.size == 56
assert _EXCEPTION.size == 168
assert _CONTEXT.size == 1232


class Place(NamedTuple):
    """Bytes of the file."""

    size: int
    rva: int


NOWHERE = Place(0, 0)


class Memory(NamedTuple):
    """Memory of the process. Without `data` it is read when the file is written."""

    address: int
    size: int
    data: bytes | None = None


class Stack(NamedTuple):
    """A thread: its id, its registers, and its stack, which may have no bytes."""

    tid: int
    registers: Sequence[int]  # the words of struct user_regs_struct
    xstate: bytes  # XSAVE or FXSAVE area; may be empty
    memory: Memory
    name: str = ""


class Module(NamedTuple):
    """A mapped ELF file."""

    base: int
    size: int
    path: str
    build_id: bytes  # may be empty


class System(NamedTuple):
    """The host."""

    cpus: int
    family: int
    revision: int  # model << 8 | stepping
    vendor: bytes  # "GenuineIntel", "AuthenticAMD"
    release: tuple[int, int, int]  # of the kernel
    version: str  # what uname(1) says


class MinidumpFile:
    """Collects streams; `content` is the file, `parts` the same with memory that is read then."""

    def __init__(self, streams: int) -> None:
        """streams: of which there is room for so many in the directory."""
        self._most = streams
        self._directory: list[tuple[int, Place]] = []
        self._size = _HEADER.size + streams * _ENTRY.size
        self._parts: list[bytes | Memory] = []  # behind the directory
        self._memory: list[tuple[int, Place]] = []  # by address, what the memory list will have
        self._registers = NOWHERE  # of the first thread

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def content(self, when: float | None = None) -> bytes:
        """The whole file, all of whose memory came with its data."""
        return b"".join(self.parts(_not_there, when))

    def parts(
        self, read: Callable[[int, int], bytes], when: float | None = None
    ) -> Iterator[bytes]:
        """The file in parts of at most a MiB, but for what was added as larger ones.

        read(address, size): memory that came without its data. when: seconds of the epoch.
        """
        unused = [(0, NOWHERE)] * (self._most - len(self._directory))
        seconds = int(time.time() if when is None else when) & 0xFFFFFFFF
        yield _HEADER.pack(*(_SIGNATURE, _VERSION, self._most, _HEADER.size, 0, seconds, 0))
        for kind, place in [*self._directory, *unused]:
            yield _ENTRY.pack(kind, *place)
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            for at in range(part.address, part.address + part.size, _BLOCK):
                yield read(at, min(_BLOCK, part.address + part.size - at))

    def add(self, data: bytes) -> Place:
        """Put something into the file, at a multiple of 8."""
        return self._put(data, len(data))

    def _put(self, part: bytes | Memory, size: int) -> Place:
        padding = bytes(-self._size % 8)
        self._parts += [padding, part]
        place = Place(size, self._size + len(padding))
        self._size += len(padding) + size
        return place

    def stream(self, kind: int, data: bytes) -> None:
        if len(self._directory) == self._most:
            raise ValueError(f"more than {self._most} streams")
        self._directory.append((kind, self.add(data)))

    def threads(self, stacks: Sequence[Stack]) -> None:
        """The list of threads, the one that died first; their stacks go to the memory list."""
        entries: list[bytes] = []
        for one in stacks:
            registers = self.add(context(one.registers, one.xstate))
            self._registers = self._registers if entries else registers
            place = self.memory(one.memory) if one.memory.size else NOWHERE
            entries.append(
                _THREAD.pack(one.tid & _U32, 0, 0, 0, 0, one.memory.address, *place, *registers)
            )
        self.stream(THREAD_LIST, _list_of(entries))
        if any(one.name for one in stacks):
            names = [
                _NAME.pack(one.tid & _U32, self._text(one.name).rva) for one in stacks if one.name
            ]
            self.stream(THREAD_NAMES, _list_of(names))

    def memory(self, memory: Memory) -> Place:
        """Memory of the process, for the memory list."""
        data = memory.data
        place = self._put(memory if data is None else data, memory.size)
        self._memory.append((memory.address, place))
        return place

    def memory_list(self) -> None:
        """After all memory was added."""
        found = [_MEMORY.pack(address, *place) for address, place in sorted(self._memory)]
        self.stream(MEMORY_LIST, _list_of(found))

    def exception(self, tid: int, signal: int, code: int, address: int) -> None:
        """What the first thread died of, after `threads`. code: si_code of its siginfo.

        signal: or DUMP_REQUESTED.
        """
        body = _EXCEPTION.pack(
            *(tid & _U32, signal & _U32, code & _U32, 0, address, 0), *self._registers
        )
        self.stream(EXCEPTION, body)

    def modules(self, modules: Sequence[Module]) -> None:
        """The program first."""
        entries = []
        for one in modules:
            name = self._text(one.path)
            code = self.add(_BUILD_ID + one.build_id) if one.build_id else NOWHERE
            size = min(one.size, 0xFFFFFFFF)
            entries.append(_MODULE.pack(one.base, size, 0, 0, name.rva, *code, *NOWHERE))
        self.stream(MODULE_LIST, _list_of(entries))

    def system(self, host: System) -> None:
        version = self._text(host.version)
        self.stream(
            SYSTEM_INFO,
            _SYSTEM.pack(
                *(AMD64, host.family, host.revision, min(host.cpus, 255), 0),
                *(*host.release, LINUX, version.rva, 0, 0),
                *(host.vendor, 0, 0, 0),
            ),
        )

    def process(self, pid: int, user_s: int, system_s: int, created: int = 0) -> None:
        """Times in seconds; created: of the epoch, 0 if it is not known."""
        flags = _MISC_PROCESS_ID | _MISC_TIMES
        numbers = (number & _U32 for number in (pid, created, user_s, system_s))
        self.stream(MISC_INFO, _MISC.pack(_MISC.size, flags, *numbers))

    def _text(self, text: str) -> Place:
        """A MINIDUMP_STRING: its length in bytes, UTF-16, and a zero that does not count."""
        coded = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raw = coded.encode("utf-16-le")
        return self.add(struct.pack("<I", len(raw)) + raw + bytes(2))


def _not_there(address: int, size: int) -> bytes:
    raise ValueError(f"memory at {address:#x} came without its data")


def context(registers: Sequence[int], xstate: bytes) -> bytes:
    """CONTEXT_AMD64 of the words of struct user_regs_struct."""
    fxsave = xstate[:_FXSAVE].ljust(_FXSAVE, b"\0")
    mxcsr = int.from_bytes(fxsave[_MXCSR_AT : _MXCSR_AT + 4], "little")
    segments = (registers[word] & 0xFFFF for word in (CS, DS, ES, FS, GS, SS))
    return _CONTEXT.pack(
        *(_CONTEXT_FLAGS, mxcsr, *segments, registers[EFLAGS] & 0xFFFFFFFF),
        *(registers[word] for word in _INTEGERS),
        fxsave,
    )


def _list_of(entries: Sequence[bytes]) -> bytes:
    return struct.pack("<I", len(entries)) + b"".join(entries)
