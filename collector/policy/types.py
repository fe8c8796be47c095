"""The typed policy: what a configuration file becomes after it was checked.

Sizes are bytes, times are seconds, `None` means "no limit" or "any".
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from collector.circumstances import Pod
from collector.model import Backend, Capture, Cause, Release, SnapshotMode
from collector.redact.types import Redact
from collector.signature.types import SignatureRules


class Codec(enum.StrEnum):
    ZSTD = "zstd"
    NONE = "none"


class MappingKind(enum.StrEnum):
    """Kinds of memory mappings that a rule may include or exclude."""

    ANON = "anon"
    HEAP = "heap"
    STACK = "stack"
    FILE = "file"
    SHM = "shm"
    HUGETLB = "hugetlb"


class Compress(msgspec.Struct, frozen=True, kw_only=True):
    codec: Codec = Codec.ZSTD
    level: int = 1
    workers: int = 1


class MemoryChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which memory a `full` capture keeps. Globs match mapping paths, kinds are MappingKinds."""

    max: int | None = None
    include: tuple[str, ...] = ()  # globs or kinds dumped although the kernel would not
    exclude: tuple[str, ...] = ()  # globs or kinds left out although the kernel would dump them
    dontdump: bool = False  # True: dump MADV_DONTDUMP mappings as well
    coredump_filter: int | None = None  # None: the process's own /proc/PID/coredump_filter


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """At most `captures` full captures in `period` seconds, per executable and per crash site."""

    captures: int
    period: float
    fallback: Capture = Capture.STACKS  # the next smaller capture; beyond it a record


class Collect(msgspec.Struct, frozen=True, kw_only=True):
    """Less of each further death at one place: the first, so many next ones, all after these,
    within `period` seconds from the first."""

    first: Capture = Capture.FULL
    then: Capture = Capture.STACKS
    times: int = 5  # deaths that `then` is for
    after: Capture = Capture.RECORD
    period: float = 86400.0


class Routine(enum.StrEnum):
    """What becomes of an end that was no crash, such as that of a service that is stopped."""

    NOTE = "note"  # it is counted, and kept as one line
    RECORD = "record"  # it is a death as any other


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What is done with a death: the settings of a rule over the defaults."""

    capture: Capture = Capture.FULL
    collect: Collect | None = None  # None: each time `capture`, which else is its first
    memory: MemoryChoice = MemoryChoice()
    release: Release = Release.INSTANT
    compress: Compress = Compress()
    limit: Limit | None = Limit(captures=5, period=3600.0)
    routine: Routine = Routine.NOTE
    honour_rlimit: bool = False  # True: RLIMIT_CORE of the process bounds its core
    attributes: tuple[str, ...] = ()  # variables of its environment that the record tells
    redact: Redact = Redact()
    logs: int | None = 50  # lines of its unit's journal that the record has; None: none


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """All conditions that are given must hold; a tuple holds if one of its members does."""

    exe: tuple[str, ...] | None = None  # globs
    comm: tuple[str, ...] | None = None  # globs
    cgroup: tuple[str, ...] | None = None  # globs
    unit: tuple[str, ...] | None = None  # globs on the systemd unit
    uid: tuple[int, ...] | None = None  # `user:` names are resolved to uids on load
    signal: tuple[int, ...] | None = None
    cause: tuple[Cause, ...] | None = None
    container: bool | None = None
    # of the pod of Kubernetes that it is in
    namespace: tuple[str, ...] | None = None  # globs
    pod: tuple[str, ...] | None = None  # globs on its name
    image: tuple[str, ...] | None = None  # globs
    labels: tuple[tuple[str, tuple[str, ...]], ...] | None = None  # name and globs; all must hold
    annotations: tuple[tuple[str, tuple[str, ...]], ...] | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    match: Match
    action: Action


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    path: Path = Path("/var/lib/coreward")
    min_free: int = 1 << 30  # no core is written that would leave less than this free
    # how much it may hold; store.retention removes what is beyond. None: no limit
    max_size: int | float | None = 0.1  # bytes, or as a float a share of its file system
    max_records: int | None = 100_000
    max_age: float | None = None
    max_core_age: float | None = None
    keep_free: int | float | None = None  # as max_size
    service_max_size: int | None = None
    service_max_records: int | None = None


class Takeover(enum.StrEnum):
    """Of a core_pattern that is another crash handler's."""

    NO = "no"  # the agent does not start
    YIELD = "yield"  # replaced at the start; if others write it later, it is theirs
    KEEP = "keep"  # and ours is written again then


class HoldSettings(msgspec.Struct, frozen=True, kw_only=True):
    backend: Backend = Backend.AUTO
    takeover: Takeover = Takeover.NO
    patience: float = 0.25  # seconds that a dying process waits until something is decided of it
    bids: float = 0.05  # seconds that it waits until dumpers have bid for it
    max: float = 30.0  # seconds that a dumper may have it
    group: int | None = None  # gid whose members may register dumpers beside root


class ReleaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    default: Release = Release.INSTANT
    max_pinned: int | None = None  # bytes over all pins; None: half of the host's memory
    max_pins: int = 64
    copy: float = 0.5  # of free memory, for copies where a cgroup has no room
    shared: float = 0.05  # seconds that others are kept waiting whose memory a dying process shares
    lend: bool = False  # raise the limit of a cgroup that has none, until the core is written


class CaptureSettings(msgspec.Struct, frozen=True, kw_only=True):
    workers: int = 2  # captures written at the same time
    queue: int = 256  # captures that may wait; beyond it deaths are recorded without a core
    max_time: float = 600.0  # seconds that one capture may take
    max_read: int | None = None  # bytes of memory read for one; None: the host's memory and swap
    explain_time: float = 20.0  # seconds of CPU time and waiting that one explanation may take


class Condition(enum.StrEnum):
    """What a health trigger looks at; each is also the key of its bound in a trigger."""

    UNINTERRUPTIBLE = "uninterruptible"  # a thread in D state, seconds
    BLOCKED = "blocked"  # a thread that sleeps in one place without running, seconds
    NO_PROGRESS = "no-progress"  # no thread has run, seconds
    RESIDENT = "resident"  # resident memory, bytes
    DESCRIPTORS = "descriptors"  # open file descriptors
    CPU = "cpu"  # time on CPUs, 1.0 is one CPU
    MEMORY = "memory"  # of a cgroup's limit, share in use
    MEMORY_HIGH = "memory-high"  # of a cgroup of v2, how often a second it is beyond memory.high
    PRESSURE = "pressure"  # of a cgroup, share of the time in which a task waits for memory


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a watched process when `condition` is above its bound."""

    name: str
    condition: Condition
    above: float  # in the condition's own unit
    lasting: float = 0.0  # seconds that it must hold; conditions in seconds have it in `above`
    threads: tuple[str, ...] | None = None  # globs of thread names, for conditions of one thread
    mode: SnapshotMode = SnapshotMode.THREADS
    capture: Capture | None = None  # None: what is usual for the mode
    snapshots: int = 1  # at most so many in any `period`, over all processes of the rule
    period: float = 3600.0


WATCH_MEMORY = 4 << 20  # bytes


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Processes whose threads are sampled while they live. `match` has neither signal nor cause."""

    name: str
    match: Match
    every: float = 1.0
    keep: int = 60  # samples of each process
    memory: int = WATCH_MEMORY  # bytes for the samples of each process
    stack: int = 16 << 10  # bytes of each thread's stack
    triggers: tuple[Trigger, ...] = ()


class ArmRule(msgspec.Struct, frozen=True, kw_only=True):
    """Processes whose memory is held while they live, so that it is there when they are killed.

    `match` has neither signal nor cause. Times are seconds.
    """

    name: str
    match: Match
    on: tuple[Cause, ...] = (Cause.KILLED, Cause.OOM)  # of KILLED, OOM and EXIT
    capture: Capture = Capture.FULL
    within: float = 0.3  # where others need its memory at once: what was not read by then is lost
    children: bool = False  # True: also what these start, whatever that executes


class ArmSettings(msgspec.Struct, frozen=True, kw_only=True):
    max: int = 256  # processes that are armed at a time
    rules: tuple[ArmRule, ...] = ()


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Processes of which each thread keeps its last system calls. `match` has neither signal nor
    cause; what they start is traced as well."""

    name: str
    match: Match
    calls: int = 64  # that each thread keeps
    strings: int = 0  # bytes of each path and buffer; none is copied if 0
    include: tuple[str, ...] = ()  # calls and sets of calls (arch.call_sets); empty: all
    exclude: tuple[str, ...] = ()


class DumperRule(msgspec.Struct, frozen=True, kw_only=True):
    """A dumper of somebody's own that runs in a worker of the agent: docs/dumpers.md."""

    name: str
    module: str | None = None  # `package.module:name`, called without arguments
    entry_point: str | None = None  # of group coreward.dumpers; None: the name's, without module
    match: Match = Match()  # which processes it is asked about
    pin: bool = False  # pinned memory will do
    timeout: float = 30.0  # seconds that it may have a process
    user: int | None = None  # uid that it runs as; None: root
    memory: int = 512 << 20  # bytes (RLIMIT_DATA)


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A program that gets the record of a death on its stdin when it is closed."""

    name: str
    exec: tuple[str, ...]  # an absolute path, and its arguments
    match: Match = Match()  # which deaths; none given: all that are on record
    user: int | None = None  # uid that it runs as; None: nobody's
    timeout: float = 30.0  # seconds that it may take


class RecorderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the flight recorder as a whole."""

    memory: int = 64 << 20  # bytes for the samples of all watched processes
    processes: int = 64


class OtlpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A collector of OpenTelemetry that takes logs by HTTP, in JSON."""

    endpoint: str  # URL, with its path
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0  # seconds, of one request


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of each death beside the store."""

    journal: bool = False
    otlp: OtlpSettings | None = None


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a health agent of the node asks."""

    socket: Path | None = None  # None: nowhere
    group: int | None = None  # gid whose members may ask beside root


class PodDefault(enum.StrEnum):
    """What is done with pods that do not say themselves whether their deaths are collected."""

    IN = "in"
    OUT = "out"


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Pods of this node: docs/kubernetes.md."""

    root: str = "/"  # absolute: where the files of the node's container runtime are looked up from
    default: PodDefault = PodDefault.IN


USUAL_PODS = KubernetesSettings()


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. `source` is where it came from, for messages."""

    source: str = "built-in"
    store: StoreSettings = StoreSettings()
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 9836)
    hold: HoldSettings = HoldSettings()
    release: ReleaseSettings = ReleaseSettings()
    capture: CaptureSettings = CaptureSettings()
    recorder: RecorderSettings = RecorderSettings()
    sinks: SinkSettings = SinkSettings()
    health: HealthSettings = HealthSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    defaults: Action = Action()
    rules: tuple[Rule, ...] = ()
    watch: tuple[Watch, ...] = ()
    arm: ArmSettings = ArmSettings()
    trace: tuple[Trace, ...] = ()
    dumpers: tuple[DumperRule, ...] = ()
    hooks: tuple[Hook, ...] = ()
    signature: SignatureRules = SignatureRules()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a dying process when policy decides. None: could not be had."""

    cause: Cause
    exe: str | None = None
    comm: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    uid: int | None = None
    signal: int | None = None
    container: bool | None = None
    of_pod: Pod | None = None  # None: it is in none, or that is not known

    @property
    def namespace(self) -> str | None:
        return self.of_pod.namespace if self.of_pod else None

    @property
    def pod(self) -> str | None:
        """Its name."""
        return self.of_pod.name if self.of_pod else None

    @property
    def image(self) -> str | None:
        return self.of_pod.image if self.of_pod else None

    @property
    def labels(self) -> dict[str, str] | None:
        """Those that are known; the same of annotations."""
        return self.of_pod.labels if self.of_pod else None

    @property
    def annotations(self) -> dict[str, str] | None:
        return self.of_pod.annotations if self.of_pod else None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What policy says of one death, and why."""

    rule: str  # the rule's name, or "defaults"
    action: Action
    why: str  # one line for people: which conditions matched
