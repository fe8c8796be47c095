"""The notes of an ELF core: built from typed values, and parsed back into them.

The order is the kernel's (write_note_info in fs/binfmt_elf.c), because debuggers take the first
thread for the current one: NT_PRSTATUS of the dying thread, then what describes the process
(NT_PRPSINFO, NT_SIGINFO, NT_AUXV, NT_FILE), then the rest of the dying thread, then the other
threads; NT_X86_XSAVE_LAYOUT last. The project's own notes follow it: the threads' names, which no
kernel's note has, and what the core is of. Building from what was
parsed out of a kernel's core gives the same bytes.

Parsing trusts nothing: a length that leads outside the notes, or a body that is not what its
type says, is a CoreFormatError. Program headers and memory are not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE, REGISTERS
from collector.elfcore.types import (
    CorewardNote,
    FileEntry,
    LeftOut,
    Mapping,
    ParsedNotes,
    ProcessImage,
    PsInfo,
    RawNote,
    Thread,
)
from collector.errors import CoreFormatError

OWN_NAME = b"Coreward"
# Not a small number: readelf and eu-readelf go by the type alone, and would show an NT_PRSTATUS.
OWN_TYPE = 0x434F5245  # "CORE"
NAMES_TYPE = 0x54485244  # "THRD": [[tid, name], ...] in JSON
OWN_CAPACITY = 16384  # bytes of body, always: so that it can be rewritten when the core is done
MAX_NOTES = 1 << 20  # notes that are parsed
MAX_FILE_NOTE = 64 << 20  # bytes; paths come from the crashing process

_PAD = (b"", bytes(3), bytes(2), bytes(1))  # by length modulo 4
_U64 = 1 << 64
_encode = msgspec.json.Encoder().encode
_decode_own = msgspec.json.Decoder(CorewardNote).decode
_decode_names = msgspec.json.Decoder(list[tuple[int, str]]).decode


def build_notes(image: ProcessImage) -> bytes:
    """Give the body of a core's PT_NOTE segment, a multiple of 4 bytes long.

    Linear in the number of threads and mappings. ValueError if a value does not fit its field.
    """
    if not image.threads:
        raise ValueError("a core needs at least one thread")
    try:
        return _build(image)
    except struct.error as error:
        raise ValueError(f"a value does not fit its note: {error}") from None


def _build(image: ProcessImage) -> bytes:
    parts: list[bytes] = []
    first = image.threads[0]
    _add(parts, arch.CORE, arch.NT_PRSTATUS, _prstatus(first))
    _add_process(parts, image)
    _add_rest(parts, first)
    for thread in image.threads[1:]:
        _add(parts, arch.CORE, arch.NT_PRSTATUS, _prstatus(thread))
        _add_rest(parts, thread)
    if image.xsave_layout is not None:
        _add(parts, arch.LINUX, arch.NT_X86_XSAVE_LAYOUT, image.xsave_layout)
    for note in image.extra:
        _add(parts, note.owner, note.type, note.data)
    names = [(t.tid, t.name.encode("utf-8", "backslashreplace").decode()) for t in image.threads]
    if any(name for _, name in names):
        _add(parts, OWN_NAME, NAMES_TYPE, _encode(names))
    if image.note is not None:
        parts.append(build_own(image.note))
    return b"".join(parts)


def build_own(note: CorewardNote) -> bytes:
    """Give the project's own note. Its length does not depend on its contents.

    Of `left_out` as many ranges are kept as there is room for; the counts tell of the rest.
    """
    kept = note.left_out
    text = note.text[:2048]
    while True:
        body = _encode(msgspec.structs.replace(note, left_out=kept, text=text))
        if len(body) <= OWN_CAPACITY:
            break
        if not kept:
            raise ValueError("the core's own note does not fit its space: shorten its fields")
        kept = kept[: len(kept) * OWN_CAPACITY // len(body)] if len(kept) > 8 else ()
    parts: list[bytes] = []
    # JSON may be followed by white space.
    _add(parts, OWN_NAME, OWN_TYPE, body.ljust(OWN_CAPACITY))
    return b"".join(parts)


def with_left_out(note: CorewardNote, ranges: Sequence[LeftOut]) -> CorewardNote:
    """Give the note with these ranges (start <= end) added to what is left out."""
    return msgspec.structs.replace(
        note,
        left_out=(*note.left_out, *ranges),
        left_out_count=note.left_out_count + len(ranges),
        left_out_bytes=note.left_out_bytes + sum(r.end - r.start for r in ranges),
    )


def parse_notes(data: bytes | memoryview) -> ParsedNotes:
    """Read a PT_NOTE segment. Threads are in its order: in the kernel's cores the dying one first.

    What is not known, or is there a second time, is kept raw: behind a thread in that thread's
    `extra`, else in `other`. CoreFormatError if the notes are damaged.
    """
    parser = _Parser()
    for number, note in enumerate(iter_notes(data)):
        if number >= MAX_NOTES:
            raise CoreFormatError(f"core notes: more than {MAX_NOTES} of them")
        parser.take(note)
    return parser.result()


def image_of(notes: ParsedNotes, mappings: Sequence[Mapping]) -> ProcessImage:
    """Give the image that `notes` came from; NT_FILE is rebuilt from `mappings`."""
    return ProcessImage(
        threads=notes.threads,
        mappings=mappings,
        auxv=notes.auxv or b"",
        siginfo=notes.siginfo or b"",
        psinfo=notes.psinfo,
        xsave_layout=notes.xsave_layout,
        extra=notes.other,
        note=notes.note,
    )


def iter_notes(data: bytes | memoryview) -> Iterator[RawNote]:
    """Walk the notes of a PT_NOTE segment. CoreFormatError where one leads outside it."""
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        if end - at < arch.NHDR.size:
            if any(view[at:end]):
                raise CoreFormatError(f"core notes: {end - at} stray bytes at their end")
            return
        name_size, size, kind = arch.NHDR.unpack_from(view, at)
        name_at = at + arch.NHDR.size
        body_at = name_at + (name_size + 3 & ~3)
        body_end = body_at + size
        if body_end > end:
            raise CoreFormatError(
                f"core notes: the note at byte {at} needs {body_end - at} bytes, "
                f"{end - at} are there"
            )
        owner = bytes(view[name_at : name_at + name_size])
        yield RawNote(
            owner=owner[:-1] if owner.endswith(b"\0") else owner,
            type=kind,
            data=bytes(view[body_at:body_end]),
        )
        at = body_at + (size + 3 & ~3)


# --- building -----------------------------------------------------------------------------------


def _add(parts: list[bytes], owner: bytes, kind: int, data: bytes) -> None:
    name = owner + b"\0" if owner else b""
    parts.append(arch.NHDR.pack(len(name), len(data), kind) + name + _PAD[len(name) & 3])
    parts.append(data)
    if len(data) & 3:
        parts.append(_PAD[len(data) & 3])


def _prstatus(thread: Thread) -> bytes:
    if len(thread.regs) != REGISTERS:
        raise ValueError(f"thread {thread.tid}: {len(thread.regs)} registers, not 27")
    return arch.PRSTATUS.pack(
        thread.signal,
        0,
        0,
        thread.signal,
        thread.sigpend,
        thread.sighold,
        thread.tid,
        thread.ppid,
        thread.pgrp,
        thread.sid,
        *divmod(thread.utime, 1_000_000),
        *divmod(thread.stime, 1_000_000),
        *divmod(thread.cutime, 1_000_000),
        *divmod(thread.cstime, 1_000_000),
        *thread.regs,
        1 if thread.xstate is not None or thread.fpregs is not None else 0,
    )


def _add_rest(parts: list[bytes], thread: Thread) -> None:
    xstate = thread.xstate
    fpregs = thread.fpregs
    if fpregs is None and xstate is not None:
        fpregs = _fxsave(xstate)
    if fpregs is not None:
        if len(fpregs) != arch.FXSAVE_SIZE:
            raise ValueError(f"thread {thread.tid}: {len(fpregs)} bytes of FPU state, not 512")
        _add(parts, arch.CORE, arch.NT_FPREGSET, fpregs)
    if xstate is not None and len(xstate) > arch.FXSAVE_SIZE:
        _add(parts, arch.LINUX, arch.NT_X86_XSTATE, xstate)
    for note in thread.extra:
        _add(parts, note.owner, note.type, note.data)


def _fxsave(xstate: bytes) -> bytes:
    """NT_FPREGSET of an XSAVE area: the kernel has the features' mask in NT_X86_XSTATE only."""
    if len(xstate) <= arch.FXSAVE_SIZE:
        return xstate
    return xstate[: arch.FXSAVE_SOFTWARE] + bytes(arch.FXSAVE_SIZE - arch.FXSAVE_SOFTWARE)


def _add_process(parts: list[bytes], image: ProcessImage) -> None:
    if image.psinfo is not None:
        _add(parts, arch.CORE, arch.NT_PRPSINFO, _prpsinfo(image.psinfo))
    if image.siginfo:
        if len(image.siginfo) != arch.SIGINFO_SIZE:
            raise ValueError(f"siginfo has {len(image.siginfo)} bytes, not {arch.SIGINFO_SIZE}")
        _add(parts, arch.CORE, arch.NT_SIGINFO, image.siginfo)
    if image.auxv:
        _add(parts, arch.CORE, arch.NT_AUXV, image.auxv)
    _add(parts, arch.CORE, arch.NT_FILE, _file_table(image.mappings))


def _prpsinfo(ps: PsInfo) -> bytes:
    number = ps.state_number
    if number is None:
        number = arch.STATES.find(ps.state) if ps.state in arch.STATES else len(arch.STATES)
    return arch.PRPSINFO.pack(
        number,
        ps.state.encode("latin-1"),
        1 if ps.state == "Z" else 0,
        ps.nice,
        ps.flag,
        ps.uid,
        ps.gid,
        ps.pid,
        ps.ppid,
        ps.pgrp,
        ps.sid,
        ps.fname[:16],
        ps.psargs[:80],
    )


def _file_table(mappings: Sequence[Mapping]) -> bytes:
    lines: list[bytes] = []
    names: list[bytes] = []
    pack = arch.FILE_LINE.pack
    room = MAX_FILE_NOTE
    for mapping in mappings:
        path = _mapped_path(mapping)
        if path is None:
            continue
        name = path.encode("utf-8", "surrogateescape")
        room -= arch.FILE_LINE.size + len(name) + 1
        if room < 0:
            break
        lines.append(pack(mapping.start, mapping.end, mapping.offset // PAGE))
        names.append(name)
    names.append(b"")
    return b"".join((arch.FILE_HEAD.pack(len(lines), PAGE), b"".join(lines), b"\0".join(names)))


def _mapped_path(mapping: Mapping) -> str | None:
    """Path as the kernel puts it in NT_FILE, which lists mappings of files only."""
    path = mapping.path
    if not path or mapping.special:
        return None
    if path.startswith("["):
        # Named shared anonymous memory: maps shows its name, NT_FILE the file behind it.
        return "/dev/zero (deleted)" if path.startswith("[anon_shmem:") else None
    return path


# --- parsing ------------------------------------------------------------------------------------


class _Parser:
    """Collects notes in their order; a thread is complete when the next NT_PRSTATUS comes."""

    def __init__(self) -> None:
        self.threads: list[Thread] = []
        self.current: Thread | None = None
        self.fpregs: bytes | None = None
        self.xstate: bytes | None = None
        self.extra: list[RawNote] = []
        self.other: list[RawNote] = []
        self.once: dict[int, bytes] = {}  # notes that describe the process, by type
        self.own: CorewardNote | None = None
        self.names: dict[int, str] = {}  # of threads

    def take(self, note: RawNote) -> None:
        kind = note.type
        if note.owner == arch.CORE and kind == arch.NT_PRSTATUS:
            self._end_thread()
            self.current = _parse_prstatus(note.data)
        elif note.owner == arch.CORE and kind == arch.NT_FPREGSET and self._thread_lacks_fp():
            self.fpregs = _sized(note.data, arch.FXSAVE_SIZE, "NT_FPREGSET")
        elif note.owner == arch.LINUX and kind == arch.NT_X86_XSTATE and self._thread_lacks_x():
            if len(note.data) <= arch.FXSAVE_SIZE:
                raise CoreFormatError(f"core notes: NT_X86_XSTATE of {len(note.data)} bytes")
            self.xstate = note.data
        elif self._describes_process(note) and kind not in self.once:
            self.once[kind] = note.data
        elif note.owner == OWN_NAME and kind == OWN_TYPE and self.own is None:
            self.own = _parse_own(note.data)
        elif note.owner == OWN_NAME and kind == NAMES_TYPE and not self.names:
            self.names = _parse_names(note.data)
        elif self.current is not None and note.owner in (arch.CORE, arch.LINUX):
            self.extra.append(note)
        else:
            self.other.append(note)

    def result(self) -> ParsedNotes:
        self._end_thread()
        once = self.once.get
        psinfo, siginfo, files = once(arch.NT_PRPSINFO), once(arch.NT_SIGINFO), once(arch.NT_FILE)
        threads = [_named(thread, self.names) for thread in self.threads]
        return ParsedNotes(
            threads=tuple(threads),
            psinfo=None if psinfo is None else _parse_prpsinfo(psinfo),
            siginfo=None if siginfo is None else _sized(siginfo, arch.SIGINFO_SIZE, "NT_SIGINFO"),
            auxv=once(arch.NT_AUXV),
            files=None if files is None else _parse_file_table(files),
            xsave_layout=once(arch.NT_X86_XSAVE_LAYOUT),
            note=self.own,
            other=tuple(self.other),
        )

    def _thread_lacks_fp(self) -> bool:
        return self.current is not None and self.fpregs is None

    def _thread_lacks_x(self) -> bool:
        return self.current is not None and self.xstate is None

    @staticmethod
    def _describes_process(note: RawNote) -> bool:
        if note.owner == arch.CORE:
            return note.type in (arch.NT_PRPSINFO, arch.NT_SIGINFO, arch.NT_AUXV, arch.NT_FILE)
        return note.owner == arch.LINUX and note.type == arch.NT_X86_XSAVE_LAYOUT

    def _end_thread(self) -> None:
        if self.current is None:
            return
        xstate, fpregs = self.xstate, self.fpregs
        if xstate is None:
            xstate, fpregs = fpregs, None
        elif fpregs == _fxsave(xstate):
            fpregs = None
        self.threads.append(
            msgspec.structs.replace(
                self.current, xstate=xstate, fpregs=fpregs, extra=tuple(self.extra)
            )
        )
        self.current = self.fpregs = self.xstate = None
        self.extra = []


def _named(thread: Thread, names: dict[int, str]) -> Thread:
    name = names.get(thread.tid)
    return msgspec.structs.replace(thread, name=name) if name else thread


def _sized(data: bytes, size: int, name: str) -> bytes:
    if len(data) != size:
        raise CoreFormatError(f"core notes: {name} of {len(data)} bytes, not {size}")
    return data


def _parse_prstatus(data: bytes) -> Thread:
    word = arch.PRSTATUS.unpack(_sized(data, arch.PRSTATUS.size, "NT_PRSTATUS"))
    return Thread(
        signal=word[3],
        sigpend=word[4],
        sighold=word[5],
        tid=word[6],
        ppid=word[7],
        pgrp=word[8],
        sid=word[9],
        utime=word[10] * 1_000_000 + word[11],
        stime=word[12] * 1_000_000 + word[13],
        cutime=word[14] * 1_000_000 + word[15],
        cstime=word[16] * 1_000_000 + word[17],
        regs=word[18 : 18 + REGISTERS],
    )


def _parse_prpsinfo(data: bytes) -> PsInfo:
    word = arch.PRPSINFO.unpack(_sized(data, arch.PRPSINFO.size, "NT_PRPSINFO"))
    state = word[1].decode("latin-1")
    return PsInfo(
        state=state,
        state_number=None if arch.STATES[word[0] : word[0] + 1] == state else word[0],
        nice=word[3],
        flag=word[4],
        uid=word[5],
        gid=word[6],
        pid=word[7],
        ppid=word[8],
        pgrp=word[9],
        sid=word[10],
        fname=word[11].rstrip(b"\0"),
        psargs=word[12].rstrip(b"\0"),
    )


def _parse_file_table(data: bytes) -> tuple[FileEntry, ...]:
    if len(data) < arch.FILE_HEAD.size:
        raise CoreFormatError(f"core notes: NT_FILE of {len(data)} bytes")
    count, page = arch.FILE_HEAD.unpack_from(data)
    names_at = arch.FILE_HEAD.size + count * arch.FILE_LINE.size
    # Each line has a name, and each name at least its NUL.
    if names_at + count > len(data):
        raise CoreFormatError(f"core notes: NT_FILE of {len(data)} bytes with {count} lines")
    names = data[names_at:].split(b"\0", count)
    if len(names) <= count:
        raise CoreFormatError(f"core notes: NT_FILE names {len(names) - 1} of its {count} files")
    entries = []
    lines = arch.FILE_LINE.iter_unpack(data[arch.FILE_HEAD.size : names_at])
    for (start, end, offset), name in zip(lines, names, strict=False):
        if start > end or offset * page >= _U64:
            raise CoreFormatError(f"core notes: NT_FILE line {start:#x}-{end:#x} is impossible")
        path = name.decode("utf-8", "surrogateescape")
        entries.append(FileEntry(start=start, end=end, offset=offset * page, path=path))
    return tuple(entries)


def _parse_own(data: bytes) -> CorewardNote:
    try:
        return _decode_own(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CoreFormatError(f"core notes: the Coreward note is damaged: {error}") from None


def _parse_names(data: bytes) -> dict[int, str]:
    try:
        return dict(_decode_names(data))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CoreFormatError(f"core notes: the threads' names are damaged: {error}") from None
