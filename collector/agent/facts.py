"""What each stage of a death learns: one type a stage, its fields those of `Record`.

    Opened     decide   who it was, what policy wants of it, how it is released
    Placed     decide   the same of a process that nobody held
    Descended  decide   what lies above it
    InPod      exit     the names of its pod, where nobody could wait for them before
    Held       release  how long it waited, where that is known only later
    Told       write    what the kernel's notes say, where BPF saw nothing
    Counted    write    its threads
    Kept       write    its core
    NotKept    write    that there is none
    Ended      exit     whether the kernel counts it as dumped
    Sampled    export   what the flight recorder had
    KilledByUnit  export  what systemd says of the unit whose process it killed
    Logged     export   the last lines of its unit
    Traced     export   the last system calls, as it had them
    OfHeap     heap     what its allocator says, of one that ran out of memory

What its core explains is an Explanation; what its events say is in the record from the start.
"""

from __future__ import annotations

import msgspec

from collector.circumstances import Descriptor, LogLine, Pod
from collector.model import (
    CallsFacts,
    Capture,
    Cause,
    HeapProfile,
    Killer,
    Outcome,
    Record,
    Relative,
    Release,
    SamplesFacts,
    Sender,
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage knows. Every field is one of `Record`, of the same type."""

    def added_to(self, record: Record) -> Record:
        return msgspec.structs.replace(record, **msgspec.structs.asdict(self))


class Placed(Facts, frozen=True, kw_only=True):
    """Of what service it was, and the rule that it falls under."""

    cgroup: str | None
    unit: str | None
    container: bool | None
    pod: Pod | None
    rule: str
    capture_wanted: Capture


class Opened(Placed, frozen=True, kw_only=True):
    owner: str | None
    readable_by: int | None
    exe: str | None
    cmdline: list[str] | None
    resident_bytes: int | None
    capture: Capture
    outcome: Outcome
    release: Release
    release_reason: str
    held_ms: float | None
    descriptors: list[Descriptor] | None
    descriptors_open: int | None


class Descended(Facts, frozen=True, kw_only=True):
    ancestry: list[Relative]


class InPod(Facts, frozen=True, kw_only=True):
    """The names of its pod, where they were looked for later."""

    pod: Pod


class Held(Facts, frozen=True, kw_only=True):
    held_ms: float


class Signal(Facts, frozen=True, kw_only=True):
    """Of a signal that only the kernel's notes tell."""

    ip: int
    sp: int


class SignalInfo(Facts, frozen=True, kw_only=True):
    signal: int
    signal_name: str | None
    si_code: int
    si_addr: int | None
    syscall: int | None


class DyingThread(Facts, frozen=True, kw_only=True):
    tid: int


class SignalSender(Facts, frozen=True, kw_only=True):
    sender: Sender
    cause: Cause


class ByOther(Facts, frozen=True, kw_only=True):
    """A signal from a process that cannot be named."""

    cause: Cause


class Counted(Facts, frozen=True, kw_only=True):
    threads: int
    thread_name: str | None


class Kept(Facts, frozen=True, kw_only=True):
    capture: Capture
    outcome: Outcome
    core: str | None
    core_size: int | None
    core_memory: int | None
    capture_s: float | None
    attributes: dict[str, str]
    redacted: dict[str, int]


class NotKept(Facts, frozen=True, kw_only=True):
    capture: Capture
    outcome: Outcome


class Ended(Facts, frozen=True, kw_only=True):
    core_bit: bool


class Sampled(Facts, frozen=True, kw_only=True):
    samples: SamplesFacts


class KilledByUnit(Facts, frozen=True, kw_only=True):
    killer: Killer


class Logged(Facts, frozen=True, kw_only=True):
    logs: list[LogLine]


class Traced(Facts, frozen=True, kw_only=True):
    calls: CallsFacts


class OfHeap(Facts, frozen=True, kw_only=True):
    heap: list[HeapProfile] | None
