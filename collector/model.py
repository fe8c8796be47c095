"""What a death is: the typed values that travel between the stages.

`probe` makes the events, `hold` the hand-off, `agent` joins them into one `Record` per death,
`store` keeps it, `explain` adds the frames and the sentence. All values are immutable; a stage
that learns something makes a new one (`msgspec.structs.replace`). A fact that could not be had
is None, and `Record.lost` says why.

A process is named by its pid *and* start time, never by its pid alone.
"""

from __future__ import annotations

import datetime
import enum
from typing import NamedTuple

import msgspec

from collector.circumstances import Descriptor, HostFacts, LogLine, ManagedRuntime, Package, Pod
from collector.diagnosis import Access as Access  # noqa: PLC0414 - it is one of the model's
from collector.diagnosis import Diagnosis

TICK_NS = 10_000_000  # of start times in /proc; USER_HZ is 100 on every supported architecture


class ProcessKey(NamedTuple):
    """One process of this boot: pid in the initial namespace, start in ns of CLOCK_BOOTTIME."""

    pid: int
    start_ns: int

    def to_tick(self) -> ProcessKey:
        """As exact as /proc/PID/stat is: equal for one process, wherever its key comes from."""
        return ProcessKey(self.pid, self.start_ns - self.start_ns % TICK_NS)

    def is_same(self, other: ProcessKey) -> bool:
        """Whether both name one process, although one may be exact to a clock tick only."""
        return self.to_tick() == other.to_tick()


class Cause(enum.StrEnum):
    """Why a process ended, as policy and metrics see it."""

    SIGNAL = "signal"  # a fatal signal that the kernel or the process itself raised
    KILLED = "killed"  # a fatal signal sent by another process
    OOM = "oom"  # chosen by the kernel's out-of-memory killer
    EXIT = "exit"  # exit(N) with N != 0
    SNAPSHOT = "snapshot"  # it did not end: somebody asked for a core of it


class Capture(enum.StrEnum):
    """How much of a process is kept, from most to least."""

    FULL = "full"  # all memory that the kernel would dump
    STACKS = "stacks"  # registers, stacks and what a debugger needs to walk them
    THREADS = "threads"  # registers and notes only
    RECORD = "record"  # no core; the record says what is known
    NONE = "none"  # not even a record; counted in the metrics


class SnapshotMode(enum.StrEnum):
    """What a snapshot of a live process promises."""

    AUTO = "auto"
    THREADS = "threads"  # registers and stacks of all threads; the process never stops as a whole
    NONSTOP = "nonstop"  # memory as well, while everything goes on: not of one instant
    FULL_STOP = "full-stop"  # registers and memory of one instant


class Backend(enum.StrEnum):
    """How the kernel hands a dying process over (`hold.backend`)."""

    AUTO = "auto"
    SOCKET = "socket"
    PIPE = "pipe"
    NONE = "none"


class Release(enum.StrEnum):
    """When the dying process may go on."""

    INSTANT = "instant"  # at once: its memory is pinned and read afterwards
    AFTER_COPY = "after-copy"  # when the selected memory is copied; there was no room otherwise
    AFTER_WRITE = "after-write"  # when the selected memory is on disk


class Outcome(enum.StrEnum):
    """What became of the capture that policy asked for."""

    PENDING = "pending"  # the core is being written
    COMPLETE = "complete"  # all that was asked for is in the core
    TRUNCATED = "truncated"  # the core stops at one of its limits
    REDUCED = "reduced"  # a smaller capture than asked for; `lost` says why
    HANDLED = "handled"  # a dumper of others took it; `dumpers` says what it did
    COUNTED = "counted"  # one of many at a time, which have one record together
    RECORDED = "recorded"  # no core was asked for, or none can be had for this kind of death
    IGNORED = "ignored"  # policy wants no record of it; only counted
    FAILED = "failed"  # a core was asked for and could not be written; `lost` says why
    REMOVED = "removed"  # its core made room for another one; `lost` says why


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """The process that sent a signal, as it was at that moment."""

    pid: int
    uid: int
    comm: str | None = None  # None: only BPF tells it


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The last hardware fault that a handler of the process caught before the process died."""

    time_ns: int  # CLOCK_BOOTTIME
    tid: int
    signal: int
    si_code: int
    si_addr: int
    ip: int
    sp: int


class CrashSite(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a binary that is the same over restarts: build-id (hex) and file offset."""

    build_id: str
    offset: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a task is: ids in the initial namespaces, ns_* in its own pid namespace."""

    key: ProcessKey
    tid: int
    ns_pid: int
    ns_tid: int
    ppid: int
    comm: str  # the process's name: that of its first thread
    uid: int
    gid: int
    cgroup_id: int
    exe: str | None  # as the process itself would see it; None if it could not be read


class SentFlag(enum.IntFlag):
    """In what circumstances a fatal signal was sent: enum cw_sent of bpf/coreward.h."""

    BARE = 1  # by the kernel in the sender's name
    BY_KERNEL = 2  # by the kernel itself; the sender is the task that ran, which may be any
    LEAVING = 4  # the sender was exiting
    TO_SELF = 8
    REAPER = 16  # the sender is the first process of its pid namespace
    TRACER = 32  # the sender traces the process, with PTRACE_O_EXITKILL
    CPU_LIMIT = 64  # the process has a hard RLIMIT_CPU
    RT_LIMIT = 128  # and a hard RLIMIT_RTTIME
    PARENT = 256  # the sender is the parent of the process, at that moment


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """A fatal signal as it was sent, and who ran at that moment."""

    who: Identity
    signal: int
    code: int  # si_code; 0 if the kernel passed no siginfo
    flags: SentFlag
    parent: ProcessKey
    parent_comm: str
    arguments: bytes | None  # their first bytes; None: they were not in memory
    arguments_size: int  # bytes, of all


class KilledBy(enum.StrEnum):
    """By what a fatal signal came about."""

    PROCESS = "process"  # another process sent it: kill(2) and its like
    CGROUP_KILL = "cgroup.kill"  # a process wrote to that file of a cgroup above
    PARENT_DEATH = "parent-death"  # its parent ended: PR_SET_PDEATHSIG
    NAMESPACE = "pid-namespace"  # the first process of its pid namespace ended
    TRACER = "tracer"  # its tracer ended: PTRACE_O_EXITKILL
    OOM = "oom"  # the out-of-memory killer
    CPU_LIMIT = "cpu-limit"  # RLIMIT_CPU
    RT_LIMIT = "realtime-limit"  # RLIMIT_RTTIME
    TIMER = "timer"  # alarm(2), setitimer(2)
    TERMINAL = "terminal"  # a key, or a hang-up
    EXEC = "exec"  # execve(2) failed when the old program was gone already
    SECCOMP = "seccomp"  # its filter of system calls
    KERNEL = "kernel"  # another part of the kernel


class Relative(msgspec.Struct, frozen=True, kw_only=True):
    """One of the processes above another."""

    pid: int
    comm: str


class UnitState(msgspec.Struct, frozen=True, kw_only=True):
    """What systemd says of a unit just after it killed a process of it: systemctl(1) `show`."""

    result: str  # `timeout`, `watchdog`, `oom-kill`, ...; `success` while it stops or starts anew
    active: str
    sub: str  # such as `stop-sigterm`
    timeouts: dict[str, str] = {}  # property -> duration as systemd writes it; those that are set


class Killer(msgspec.Struct, frozen=True, kw_only=True):
    """Who killed a process, as he was when he did. Without `pid` the kernel did it by itself."""

    by: KilledBy
    pid: int | None = None
    tid: int | None = None
    ns_pid: int | None = None
    start_ns: int | None = None
    comm: str | None = None
    exe: str | None = None
    cmdline: list[str] | None = None
    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None
    unit: str | None = None
    container: bool | None = None
    parent: bool = False  # it was the killed process's parent when it did
    parents: list[Relative] = []  # the nearest first
    unit_state: UnitState | None = None  # of the killed process's unit, where systemd killed
    lost: dict[str, str] = {}


class OomTask(msgspec.Struct, frozen=True, kw_only=True):
    """A process in what ran out of memory."""

    pid: int
    comm: str
    resident: int  # bytes


class OomFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What ran out of memory when the out-of-memory killer chose. Sizes are bytes.

    Limit, usage and failcnt are of that moment; all else was read when the kill was told, some
    milliseconds later, when memory may have been given back.
    """

    cgroup: str | None = None  # its path in the hierarchy; None with a limit: it is gone
    limit: int | None = None  # None: the host as a whole ran out
    usage: int | None = None
    failcnt: int | None = None
    events: dict[str, int] = {}  # memory.events; of v1 memory.oom_control and failcnt
    stat: dict[str, int] = {}  # of memory.stat the sizes, by kind
    tasks: list[OomTask] = []  # the largest first; not all of many
    task_count: int | None = None  # processes in it that were looked at
    host: dict[str, int] = {}  # of /proc/meminfo, where the host ran out
    lost: dict[str, str] = {}


class StackPage(msgspec.Struct, frozen=True, kw_only=True):
    """A copied page of user stack."""

    address: int
    data: bytes


class MappedObject(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a file that was mapped at [start, end), told when its process ended."""

    start: int
    end: int
    offset: int  # in the file, bytes
    executable: bool
    path: str


class FatalSignal(msgspec.Struct, frozen=True, kw_only=True):
    """A fatal signal reached a thread; the process is about to die."""

    who: Identity
    time_ns: int  # CLOCK_BOOTTIME
    signal: int
    si_code: int | None  # None: the kernel passed no siginfo
    si_addr: int | None  # only for hardware faults (si_code > 0)
    siginfo: bytes  # verbatim, 128 bytes as in NT_SIGINFO; empty if the kernel passed none
    sender: Sender | None
    regs: tuple[int, ...]  # 27 words in the order of struct user_regs_struct (<sys/user.h>)
    stack: tuple[StackPage, ...]
    site: CrashSite | None
    last_fault: Fault | None
    thread_name: str | None = None
    fault_access: Access | None = None  # of a page fault, from the CPU's error code
    core_byte: bool = (
        False  # its RLIMIT_CORE is one byte, with which no pipe gets its core: core(5)
    )
    sending: Sending | None = None  # None: nobody sent it, or it was not told
    killer: Killer | None = None  # what became of that in the agent


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The last thread of a process left."""

    who: Identity
    time_ns: int
    status: int  # as waitpid gives it: exit code << 8, or signal with the core bit 0x80
    sender: Sender | None  # of the signal that ended it, where one did
    last_fault: Fault | None
    oom: bool = False  # the out-of-memory killer had chosen it
    unmapped: str | None = None  # why not all mapped objects were told
    mapped: tuple[MappedObject, ...] = ()  # for what was not handed over, where BPF can tell


class OomLevel(msgspec.Struct, frozen=True, kw_only=True):
    """A memory cgroup when the out-of-memory killer chose in it or below. Sizes are bytes."""

    cgroup_id: int
    usage: int
    limit: int | None
    failcnt: int  # charges that did not fit


class OomVictim(msgspec.Struct, frozen=True, kw_only=True):
    """The out-of-memory killer chose this process."""

    who: Identity
    time_ns: int
    levels: tuple[OomLevel, ...] = ()  # from its own memory cgroup upwards; empty: not known
    facts: OomFacts | None = None  # what the agent found of it


Event = FatalSignal | Exit | OomVictim


class SnapshotFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a snapshot of a live process was taken, and what it did to it."""

    mode: str  # threads, nonstop, full-stop
    method: str  # how: iterator, rolling, pre-copy, fork, copy
    why: str  # why this method
    consistent: bool  # registers and memory are of one instant
    pause_ms: float | None = None  # of the whole process; None: it was never stopped as a whole
    worst_ms: float | None = None  # the longest that one thread was held; None: none was
    # threads, and processes with the same memory, that ran on, and what is known of them
    unstopped: tuple[str, ...] = ()
    not_of_instant: tuple[str, ...] = ()  # areas whose content is not of that instant


class SamplesFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of a process's last minutes, which lie beside its record."""

    count: int
    seconds: float  # from the first to the last
    rule: str  # of `watch`
    file: str  # inside the record's folder


class CallsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The last system calls of a process's threads, which lie beside its record."""

    threads: int
    calls: int
    rule: str  # of `trace`
    file: str  # inside the record's folder
    # [start, end) of what the process unmapped in these calls; the last ones of many
    unmapped: list[tuple[int, int]] = []


class DumpFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a dumper of others did with a process: docs/dumpers.md."""

    name: str
    priority: int  # of its bid
    pid: int  # of the dumper
    uid: int
    status: int | None  # an errno, 0: all went well; None: it never said
    note: str  # its own words; without a status ours
    seconds: float
    held: bool  # the process waited for it
    passed: bool = False  # it wanted others to have it as well


# The function of a frame to which a signal handler returns: debuggers know it by this name.
SIGNAL_FRAME = "<signal handler called>"


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame of a backtrace, innermost first. Unknown parts are None."""

    pc: int
    function: str | None = None
    offset: int | None = None  # of pc from the start of the function, bytes
    file: str | None = None
    line: int | None = None
    module: str | None = None  # path of the mapped object
    build_id: str | None = None
    # pc as the object's file counts addresses: for addr2line, with build_id, on another machine
    module_offset: int | None = None
    inline: bool = False  # part of the function in the next frame that is not
    # "python": no code of the CPU's; the interpreter's function in the next frame without runs it
    language: str | None = None
    scanned: bool = False  # without unwind information, found by looking through the stack


class GoroutineGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Goroutines of a Go program that are at the same place, in the same state."""

    state: str  # `waiting`, `runnable`, `running`, `in a system call`, ...
    count: int
    ids: list[int]  # of the first ones
    frames: list[Frame]  # of one of them; empty of one that runs: they are its thread's


class Goroutines(msgspec.Struct, frozen=True, kw_only=True):
    """The goroutines of a Go program."""

    version: str  # of Go: `go1.19.8`
    count: int  # all that its runtime has, also ended ones that it will use again
    states: dict[str, int]  # state -> how many; of those that were looked at, without ended ones
    groups: list[GoroutineGroup]  # the largest first; not all of many
    lost: str | None = None


class Allocator(enum.StrEnum):
    """What hands memory out inside a process."""

    GO = "go"  # the Go runtime
    GLIBC = "glibc"
    JEMALLOC = "jemalloc"
    TCMALLOC = "tcmalloc"
    MIMALLOC = "mimalloc"


class HeapSite(msgspec.Struct, frozen=True, kw_only=True):
    """One place that allocated memory which is in use, estimated from the allocator's samples."""

    in_use: int  # bytes
    objects: int
    frames: list[Frame]  # innermost first; without the allocator's own


class HeapSize(msgspec.Struct, frozen=True, kw_only=True):
    """Pieces of memory of one size that are in use."""

    size: int  # bytes, with the allocator's header
    count: int


class HeapArena(msgspec.Struct, frozen=True, kw_only=True):
    """One of glibc's arenas; sizes in bytes, with the allocator's headers. None: see `lost`."""

    address: int
    system: int  # what it has from the kernel
    in_use: int | None = None
    chunks: int | None = None  # that are in use
    free: int | None = None  # given back by the program, and kept for its next requests
    top: int | None = None  # at its end, never handed out
    lost: str | None = None


class HeapProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one allocator of a process tells of the memory in use. Sizes are bytes."""

    allocator: Allocator
    version: str | None = None
    in_use: int | None = None
    objects: int | None = None
    rate: int | None = None  # one sample for so many bytes; None: nothing is sampled
    sites: list[HeapSite] = []  # the largest first; not all of many
    site_count: int | None = None
    sizes: list[HeapSize] = []  # those that take most first; not all of many
    arenas: list[HeapArena] = []  # the largest first; not all of many
    arena_count: int | None = None
    mapped: int | None = None  # in large pieces that have mappings of their own; not in `arenas`
    mapped_count: int | None = None
    lost: dict[str, str] = {}


class SignatureBasis(enum.StrEnum):
    """What tells one signature from another."""

    FRAMES = "frames"  # the stack of the thread that died
    PLACE = "place"  # not unwound: it died where one did that was, or at this code
    PROGRAM = "program"  # where it was then says nothing, or is not known


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Which other deaths are the same bug: docs/signatures.md. `id` and `text` are there when the
    record is closed."""

    id: str | None = None  # of the text, 12 hex digits
    text: str | None = None  # `SIGSEGV near-null | count_request`
    fine: str | None = None  # of all frames, 16 hex digits; None: there are none
    frames: tuple[str, ...] = ()  # functions of the text, innermost first
    cycle: tuple[str, ...] = ()  # of a recursion that filled its stack
    basis: SignatureBasis = SignatureBasis.FRAMES
    version: int = 1  # of the algorithm
    rules: str | None = None  # that were in force, 8 hex digits
    note: str | None = None  # what a person had written about it
    regression: bool = False  # it was noted as fixed, and this build came later


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One death, from the first event to the last export. This is `record.json`."""

    id: str  # 16 hex digits, the same for the same death however often it is seen
    time: datetime.datetime  # UTC
    pid: int
    tid: int
    cause: Cause
    comm: str
    start_ns: int
    ns_pid: int | None = None
    ppid: int | None = None
    exe: str | None = None
    cmdline: list[str] | None = None
    uid: int | None = None
    gid: int | None = None
    owner: str | None = None  # whose share it takes: a user, or a unit or cgroup of root's
    # the user who may read it, and its core, as he could have done while it ran; None: only root
    readable_by: int | None = None
    cgroup: str | None = None
    unit: str | None = None
    container: bool | None = None
    pod: Pod | None = None  # None: it was in none
    signal: int | None = None
    signal_name: str | None = None
    si_code: int | None = None
    si_addr: int | None = None
    ip: int | None = None  # instruction and stack pointer at a fatal signal
    sp: int | None = None
    fault_access: Access | None = None  # for SIGSEGV and SIGBUS
    syscall: int | None = None  # for SIGSYS: the number of the refused system call
    sender: Sender | None = None
    killer: Killer | None = None  # the sender, whole, or which part of the kernel
    last_fault: Fault | None = None
    exit_code: int | None = None  # 0..255, for cause `exit`
    core_bit: bool | None = None  # whether the kernel counts it as "core dumped"
    oom: bool = False
    oom_facts: OomFacts | None = None  # of what ran out of memory
    late: bool = False  # happened while the agent was down; learnt at its next start
    thread_name: str | None = None
    threads: int | None = None
    capture_wanted: Capture = Capture.RECORD
    capture: Capture = Capture.RECORD
    outcome: Outcome = Outcome.RECORDED
    core: str | None = None  # file name inside the record's folder: `core` or `core.zst`
    core_size: int | None = None  # bytes on disk
    core_memory: int | None = None  # bytes of memory that the core holds
    resident_bytes: int | None = None
    held_ms: float | None = None  # from the kernel's hand-off to its release
    capture_s: float | None = None  # from the hand-off until the core was visible
    release: Release | None = None  # None: the process was never held
    release_reason: str | None = None
    site: CrashSite | None = None
    reason: str | None = None  # one sentence, made of the diagnosis
    diagnosis: Diagnosis | None = None  # None: it did not die, or the record is older than that
    abort_message: str | None = None  # what the C library, or Go, said before it aborted
    frames: list[Frame] | None = None
    goroutines: Goroutines | None = None  # None: it is no Go program that is known
    signature: Signature | None = None  # None: of a snapshot, or of an older coreward
    rule: str | None = None
    snapshot: SnapshotFacts | None = None  # for cause `snapshot`
    trigger: str | None = None  # why a health trigger took it, for cause `snapshot`
    samples: SamplesFacts | None = None  # None: no `watch` rule matched it
    calls: CallsFacts | None = None  # None: no `trace` rule matched it
    # [] if it has no allocator that is known; None: not looked at, or `lost` says why
    heap: list[HeapProfile] | None = None
    dumpers: list[DumpFacts] | None = None  # who had it before us, in that order; None: nobody
    age_s: float | None = None  # of the process
    host: HostFacts | None = None
    ancestry: list[Relative] | None = None  # all processes above it, the nearest first
    package: Package | None = None  # of its executable
    runtime: ManagedRuntime | None = None  # None: none that is known
    attributes: dict[str, str] = {}  # of its environment, those that policy names
    logs: list[LogLine] | None = None  # the last lines of its unit, the oldest first
    descriptors: list[Descriptor] | None = None  # the lowest first, not all of many
    descriptors_open: int | None = None  # how many there were, where the kernel tells
    count: int | None = None  # deaths that it stands for, if more than one; the first is described
    last: datetime.datetime | None = None  # of these: when the last one happened, UTC
    pids: list[int] | None = None  # and the pids of the last ones
    redacted: dict[str, int] = {}  # rule of the policy -> what it has hidden, in core and record
    lost: dict[str, str] = {}  # field or part -> why it could not be had
