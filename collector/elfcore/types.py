"""What a core file is made of: threads, mappings, and the segments chosen from them.

Pure values: they know nothing of /proc, BPF or the kernel's hand-off. Addresses are byte
addresses, ranges are [start, end).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

# vm_flags bits of <linux/mm.h> that decide what the kernel dumps; stable since 3.7.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_IO = 0x4000
VM_HUGETLB = 0x400000
VM_DONTCOPY = 0x20000
VM_WIPEONFORK = 0x2000000
VM_DONTDUMP = 0x4000000


class Prot(enum.IntFlag):
    """Protection of a mapping, with the values of p_flags (elf(5))."""

    X = 1
    W = 2
    R = 4


class RawNote(msgspec.Struct, frozen=True, kw_only=True):
    """A note that is passed on as it is. `owner` is its vendor name without the final NUL."""

    owner: bytes
    type: int
    data: bytes


class Thread(msgspec.Struct, frozen=True, kw_only=True):
    """One thread as NT_PRSTATUS, NT_FPREGSET and NT_X86_XSTATE describe it.

    Ids are those of the process's own pid namespace, as the kernel's cores have them. Times are
    microseconds. `regs` are the 27 words of struct user_regs_struct (<sys/user.h>).
    """

    tid: int
    regs: tuple[int, ...]
    ppid: int = 0
    pgrp: int = 0
    sid: int = 0
    name: str = ""  # as the thread itself is called; the kernel's cores have none
    signal: int = 0
    sigpend: int = 0
    sighold: int = 0
    utime: int = 0
    stime: int = 0
    cutime: int = 0
    cstime: int = 0
    xstate: bytes | None = None  # XSAVE area in the standard (not compacted) format; 512: FXSAVE
    state: str = "R"
    fpregs: bytes | None = None  # NT_FPREGSET where it does not follow from xstate
    extra: tuple[RawNote, ...] = ()  # further notes of this thread, e.g. NT_386_IOPERM


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """One memory mapping (VMA). None: not known from this source."""

    start: int
    end: int
    prot: Prot
    shared: bool = False
    offset: int = 0  # in the file, bytes
    device: int = 0  # major << 20 | minor
    inode: int = 0
    path: str | None = None  # as /proc/PID/maps shows it, unescaped; also "[heap]" and the like
    vm_flags: int | None = None
    anon_vma: bool | None = None  # the mapping owns private anonymous pages
    nlink: int | None = None  # of the mapped file; 0: unlinked (shared anonymous memory)
    unnamed: bool = False  # of a file whose path could not be told
    special: bool = False  # named by the kernel: [vdso], [vvar], ...
    dump_size: int | None = None  # bytes that the kernel's own core has of it, where it said so

    @property
    def size(self) -> int:
        return self.end - self.start


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One PT_LOAD: a mapping's address range, and how many of its bytes the core holds.

    0 <= filesz <= memsz; the bytes behind filesz are not in the core (unlike a hole, which is in
    it and reads as zeros).
    """

    vaddr: int
    memsz: int
    filesz: int
    flags: Prot
    zeros: bool = False  # all of it is zero: it may share its place in the file with others


class PsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The process as NT_PRPSINFO describes it: ids as in its own namespaces."""

    pid: int
    ppid: int = 0
    pgrp: int = 0
    sid: int = 0
    uid: int = 0
    gid: int = 0
    state: str = "R"  # one of RSDTZW, or "." for any later state
    state_number: int | None = None  # pr_state where `state` does not tell it
    nice: int = 0
    flag: int = 0  # PF_* of the task
    fname: bytes = b""  # the process's name, at most 15 bytes
    psargs: bytes = b""  # its arguments separated by blanks, at most 79 bytes


class LeftOut(msgspec.Struct, frozen=True, array_like=True):
    """A range of the process's memory that the core does not hold, and why."""

    start: int
    end: int
    reason: str


class CorewardNote(msgspec.Struct, frozen=True, kw_only=True):
    """The project's own note: which death this is, and what its core does not hold.

    `left_out` names at most the ranges for which there is room; `left_out_count` and
    `left_out_bytes` count all.
    """

    record: str  # Record.id
    version: str  # of the program that wrote the core
    capture: str  # a model.Capture value
    consistent: bool  # all memory and registers are of the same moment
    truncated: bool = False  # the core stops at a limit
    left_out: tuple[LeftOut, ...] = ()
    left_out_count: int = 0
    left_out_bytes: int = 0
    # rule of the policy -> how often it was zeroed; None: not counted, but done
    redacted: dict[str, int | None] = {}
    text: str = ""


class ProcessImage(msgspec.Struct, frozen=True, kw_only=True):
    """All that the notes of a core say of a process."""

    threads: Sequence[Thread]  # the dying one first
    mappings: Sequence[Mapping] = ()
    auxv: bytes = b""  # /proc/PID/auxv; empty: no note
    siginfo: bytes = b""  # siginfo_t, 128 bytes; empty: no note
    psinfo: PsInfo | None = None
    xsave_layout: bytes | None = None  # body of NT_X86_XSAVE_LAYOUT, the same for all processes
    extra: tuple[RawNote, ...] = ()  # further notes of the process
    note: CorewardNote | None = None


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of NT_FILE: `path` is mapped at [start, end) from byte `offset` on."""

    start: int
    end: int
    offset: int
    path: str


class ParsedNotes(msgspec.Struct, frozen=True, kw_only=True):
    """The notes of a core, typed where they are known. None: the core has no such note."""

    threads: tuple[Thread, ...]
    psinfo: PsInfo | None = None
    siginfo: bytes | None = None
    auxv: bytes | None = None
    files: tuple[FileEntry, ...] | None = None
    xsave_layout: bytes | None = None
    note: CorewardNote | None = None
    other: tuple[RawNote, ...] = ()
