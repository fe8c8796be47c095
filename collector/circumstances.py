"""What else was true when a process died: fields of `Record` that say nothing of the death itself.

All of it is bounded where it is gathered, and what comes from the process is hostile.
"""

from __future__ import annotations

import datetime
import enum

import msgspec


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, and this start of it. None: it does not tell."""

    name: str
    kernel: str  # its release, as uname(2) has it
    boot_id: str | None = None
    cpu: str | None = None  # the model of the first one


class ManagedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter or virtual machine that ran the program."""

    name: str  # `python`, `go`, `java`, `node`
    version: str | None = None
    # of Java: what its own report of the error is called, as the process sees it
    report: str | None = None
    report_file: str | None = None  # a copy of it, inside the record's folder
    lost: str | None = None  # why there is no report


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """What the executable was installed with."""

    name: str
    version: str
    source: str  # who says so: `note` (of the file itself: .note.package), `dpkg`


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a process of the unit wrote to the journal."""

    time: datetime.datetime  # UTC
    pid: int | None
    message: str


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """An open file of a process."""

    fd: int
    kind: (
        str  # file, folder, device, pipe, socket, or what the kernel calls it: eventfd, memfd, ...
    )
    target: str  # a path, or `pipe:[1234]`


class PodSource(enum.StrEnum):
    """Which source told the names of a pod."""

    CGROUP = "cgroup"  # its cgroup's path, which has ids only
    BUNDLE = "bundle"  # what its container runtime keeps of a container while there is one
    LOGS = "logs"  # the names of log files, which have no image and no labels


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """The pod of Kubernetes that a process ran in: docs/kubernetes.md."""

    uid: str
    source: PodSource
    name: str | None = None
    namespace: str | None = None
    container: str | None = None  # its name in the pod
    container_id: str | None = None  # 64 hex digits; None: of the pod as a whole
    image: str | None = None
    # as far as its container runtime keeps them beside the container; not the long ones
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
