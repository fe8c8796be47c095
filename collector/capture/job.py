"""The job that the agent gives to the process that writes a core, and that process's answers.

The job goes through an anonymous file, and descriptors are inherited. Each answer is one JSON
document on a line of the writer's standard output. The writer does all decoding and all slow work,
so a hostile process can at worst break the writer of its own core.
"""

from __future__ import annotations

import msgspec

from collector.capture.parts import Copy, Source
from collector.capture.process import ProcText
from collector.model import Capture
from collector.policy.types import Compress, MemoryChoice
from collector.redact.types import Redact

MAX_EXPLAIN_CORE = 160 << 20  # bytes; two fifths for memory, the rest for notes and names
GO, NO_ROOM = b"+", b"-"  # what the agent says on the writer's standard input


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of memory as they were before the exit of a thread changed them.

    A pinned address space outlives its threads, and mm_release() (kernel/fork.c) then clears each
    thread's `clear_child_tid` word and marks the robust futexes that it holds
    (Documentation/locking/robust-futexes.rst).
    """

    address: int
    data: bytes


class CopyOrder(msgspec.Struct, frozen=True, array_like=True):
    """The process waits until its memory is copied, not until its core is written."""

    room: int  # bytes that the copy may take
    seconds: float  # that it may take
    source: Source


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a process that is held, or was: the notes of a core are made of it."""

    pid: int
    tid: int | None  # of the dying thread in its own pid namespace; None: the first in `head`
    signal: int
    siginfo: bytes
    text: ProcText
    threads: memoryview | None  # raw records of the task iterator
    mappings: memoryview | None
    head: bytearray | None  # else: the head of the kernel's own core stream


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Write a core for one dying, or already dead but pinned, process."""

    record_id: str
    folder: str  # of the record; the writer makes its files there
    evidence: Evidence
    patches: list[Patch]
    mem_fd: int
    pagemap_fd: int
    shared_fds: dict[int, int]  # start of a shared mapping -> descriptor of its file
    root_fd: int | None = None  # its root folder
    capture: Capture
    memory: MemoryChoice
    compress: Compress
    max_bytes: int | None  # of the core on disk (RLIMIT_CORE, where policy honours it)
    max_read: int | None  # bytes of memory that are read; None: as much as the host has
    max_time: float  # seconds from its start; what there is then is the core
    min_free: int  # bytes that must stay free on the store's file system
    writers: int = 1  # at most so many write there at a time
    explain: bool  # write the small core for the explainer
    explain_fd: int = -1  # of the file in memory that it goes to
    urgent: bool  # the process waits for us: no low priority
    copy: CopyOrder | None = None
    copied: Copy | None = None  # all that is wanted of its memory, where it has gone already
    attributes: tuple[str, ...] = ()  # variables of its environment that are told
    redact: Redact = Redact()
    in_haste: str = ""  # why that may lack some, in words for the record


class Told(msgspec.Struct, frozen=True):
    """What the kernel's notes say of the signal: all that is known of it where BPF saw nothing."""

    tid: int  # of the thread that died of it, in its own pid namespace
    ip: int
    sp: int
    siginfo: bytes


class Explainable(msgspec.Struct, frozen=True, tag="explainable"):
    """The small core of the dying thread is there; explaining may begin."""

    threads: int
    thread_name: str | None
    told: Told | None  # None: BPF gave the registers
    core: int = -1  # its descriptor, of run_writer's
    secrets: dict[str, list[str]] = {}  # as Written has them, which may not come


class Copied(msgspec.Struct, frozen=True, tag="copied"):
    """What is wanted of its memory is the writer's: the process may go.

    The writer goes on to its core when it reads GO.
    """


class NeedsRoom(msgspec.Struct, frozen=True, tag="needs-room"):
    """The disk's reserve is reached: the writer waits for GO, or NO_ROOM."""

    written: int  # bytes that the core has on disk
    free: int  # bytes that must be free for it to go on


class Written(msgspec.Struct, frozen=True, tag="written"):
    """What was asked for is complete and visible."""

    capture: Capture  # what was kept in the end
    name: str | None = None  # of the core in the record's folder; None: no core was asked for
    size: int = 0  # bytes on disk
    memory: int = 0  # bytes of memory that it holds
    elided: int = 0  # bytes of zero or absent pages that were not stored
    truncated: bool = False
    attributes: dict[str, str] = {}
    redacted: dict[str, int] = {}  # rule of the policy -> how often the core has zeros for it
    secrets: dict[str, list[str]] = {}  # by rule, what is to be hidden of the record's texts
    lost: dict[str, str] = {}


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """No core; `why` is for people."""

    why: str


WriterAnswer = Copied | NeedsRoom | Explainable | Written | Failed
