"""The documents of the health interface: docs/health.schema.json is made of these types."""

from __future__ import annotations

import datetime
from typing import Literal

import msgspec

VERSION = 1  # of the documents; a member may be added without a new one


class Death(msgspec.Struct, frozen=True, kw_only=True, tag="death", tag_field="event"):
    """A death that is on record, whole."""

    cursor: str
    id: str  # of the record: `coreward info ID`
    time: datetime.datetime
    pid: int
    comm: str
    cause: str  # signal, killed, oom, exit
    outcome: str
    reason: str | None = None
    category: str | None = None  # of the diagnosis; None: there is none
    signature: str | None = None
    signal: str | None = None
    exe: str | None = None
    unit: str | None = None
    cgroup: str | None = None
    uid: int | None = None
    late: bool = False  # it happened while no agent was there
    count: int = 1  # deaths that its record stands for
    namespace: str | None = None  # of the pod of Kubernetes that it was in
    pod: str | None = None  # name of that


class Trigger(msgspec.Struct, frozen=True, kw_only=True, tag="trigger", tag_field="event"):
    """A health trigger has fired: a process hangs, leaks or burns. It lives."""

    cursor: str
    time: datetime.datetime
    rule: str
    trigger: str
    why: str
    outcome: Literal["snapshot", "limited", "failed"]
    id: str | None = None  # of the snapshot's record


Event = Death | Trigger


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """What happened after a cursor, the oldest first."""

    version: int = VERSION
    cursor: str  # for the next request
    missed: bool  # there were more, which are not known here any more
    events: list[Event]


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """A service that crashes again and again."""

    unit: str  # of a pod NAMESPACE/NAME
    crashes: int  # in the last `window_s`
    last: datetime.datetime
    last_id: str
    last_reason: str | None


class Loops(msgspec.Struct, frozen=True, kw_only=True):
    """Services that have crashed `crashes` times or more in `window_s` seconds."""

    version: int = VERSION
    window_s: int
    crashes: int
    services: list[Loop]


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """How a process of one unit last died, as far as it is known here."""

    version: int = VERSION
    unit: str
    death: Death | None  # None: not among the last events


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The collector itself."""

    version: int = VERSION
    agent: str  # its version
    started: datetime.datetime
    bpf: str  # core, bcc, none
    handoff: str  # socket, pipe, none
    core_pattern_ours: bool | None  # None: there is no hand-off
    policy: str  # the file in force
    policy_error: str | None  # why a newer one was refused
    captures_waiting: int
    pins_open: int
    deaths: int  # with a record, since it started
    store_free_bytes: int
    store_min_free_bytes: int
    unstored: int  # records for which there is no room
    # deaths that a sink was not told of, since it started
    sinks_lost: dict[str, int] = {}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A request that cannot be answered."""

    version: int = VERSION
    error: str
