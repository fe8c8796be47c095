"""The typed policy: what a configuration file becomes after it was checked.

Sizes are bytes, times are seconds, `None` means "no limit" or "any".
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from collector.model import Capture, Cause, Release


class Backend(enum.StrEnum):
    """How the kernel hands a dying process over (`hold.backend`)."""

    AUTO = "auto"
    SOCKET = "socket"
    PIPE = "pipe"
    NONE = "none"


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


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What is done with a death: the settings of a rule over the defaults."""

    capture: Capture = Capture.FULL
    memory: MemoryChoice = MemoryChoice()
    release: Release = Release.INSTANT
    compress: Compress = Compress()
    limit: Limit | None = Limit(captures=5, period=3600.0)
    honour_rlimit: bool = False  # True: RLIMIT_CORE of the process bounds its core


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


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    match: Match
    action: Action


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    path: Path = Path("/var/lib/coresnap")
    min_free: int = 1 << 30  # no core is written that would leave less than this free


class HoldSettings(msgspec.Struct, frozen=True, kw_only=True):
    backend: Backend = Backend.AUTO
    takeover: bool = False


class ReleaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    default: Release = Release.INSTANT
    max_pinned: int | None = None  # bytes over all pins; None: half of the host's memory
    max_pins: int = 64


class CaptureSettings(msgspec.Struct, frozen=True, kw_only=True):
    workers: int = 2  # captures written at the same time
    queue: int = 256  # captures that may wait; beyond it deaths are recorded without a core


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. `source` is where it came from, for messages."""

    source: str = "built-in"
    store: StoreSettings = StoreSettings()
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 9836)
    hold: HoldSettings = HoldSettings()
    release: ReleaseSettings = ReleaseSettings()
    capture: CaptureSettings = CaptureSettings()
    defaults: Action = Action()
    rules: tuple[Rule, ...] = ()


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


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What policy says of one death, and why."""

    rule: str  # the rule's name, or "defaults"
    action: Action
    why: str  # one line for people: which conditions matched
