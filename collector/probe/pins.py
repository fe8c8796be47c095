"""The programs' names in bpffs: one directory per build below the pin directory.

A build's directory holds its links (which keep the programs attached), its maps and its iterator
programs; `complete` is pinned last, so a directory without it is what a killed loader left.
Pinned programs go on recording while no agent runs. Nothing here knows how programs are made.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.probe import events

TRACEPOINTS = (
    "signal_generate",
    "signal_deliver",
    "sched_process_exit",
    "mark_victim",
    "sched_process_exec",
    "sched_process_fork",
)
# Programs that only some kernels take or need, each with what it is attached to before the others
# are: a raw tracepoint, or by fentry a function of the kernel.
MAPPED_AT_EXIT = "exit_mappings"
LEAVING, LEAVING_MAPPED, LEAVING_WALKED = "leave", "leave_mapped", "leave_walked"
OPTIONAL = (MAPPED_AT_EXIT, LEAVING, LEAVING_MAPPED, LEAVING_WALKED)
LEAVING_FUNCTION = "exit_mm_release"
FORMAT = "format"  # the map whose values are as many bytes long as CW_FORMAT says
MAPS = ("ring", "counters", "settings", "tallies", "counted", "armed_ring", "armed", FORMAT)
ITERATORS = ("threads", "mappings")
# The mappings of a process that has ended, and the map that says whose; bcc has no room for it.
WALK, WALK_ORDER = "armed_mappings", "armed_walk"
LINK = "link_"
BPFFS = Path("/sys/fs/bpf")
COMPLETE = "complete"


def tells_exit_early(types: libbpf.Types) -> bool:
    """Whether sched_process_exit comes while the address space is there still (Linux >= 6.16).

    The same change of the kernel gave it a second argument.
    """
    return types.parameters("btf_trace_sched_process_exit") > 2


class Programs(NamedTuple):
    """Descriptors of what a loader made, by name; `links` by tracepoint, or optional program."""

    links: Mapping[str, int]
    maps: Mapping[str, int]
    iterators: Mapping[str, int]


def lock(pin_dir: Path) -> int:
    """Make the directory, and take it for this process; the descriptor holds the lock.

    Mounts the bpffs at its usual place where nobody did: systemd does, a bare container does not.

    ProbeError if another process has it, or if it is not on a bpffs.
    """
    if BPFFS in pin_dir.parents and not BPFFS.is_mount():
        libbpf.mount_bpffs(BPFFS)
    try:
        pin_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(pin_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ProbeError(
            f"{pin_dir} cannot be made ({error.strerror}): it needs root and a mounted bpffs "
            "(mount -t bpf bpf /sys/fs/bpf)"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ProbeError(f"another process uses {pin_dir}: only one agent can run") from error
    return descriptor


def publish(programs: Programs, directory: Path) -> None:
    """Pin everything into a build's directory. ProbeError names what failed."""
    made = libbpf.map_info(programs.maps[FORMAT]).value_size
    if made != events.FORMAT:
        raise ProbeError(
            f"the programs write records of format {made}, this version reads {events.FORMAT}: "
            "build them again"
        )
    try:
        directory.mkdir(mode=0o700)
        for name, descriptor in programs.maps.items():
            libbpf.pin(descriptor, str(directory / name))
        for name, descriptor in programs.iterators.items():
            libbpf.pin(descriptor, str(directory / name))
        for name, descriptor in programs.links.items():
            libbpf.pin(descriptor, str(directory / f"{LINK}{name}"))
        mark = libbpf.create_array(COMPLETE, 4, 1)
        try:
            libbpf.pin(mark, str(directory / COMPLETE))
        finally:
            os.close(mark)
    except OSError as error:
        raise ProbeError(f"{directory}: {error.strerror or error}") from error


def is_complete(directory: Path, *, attached: bool = True) -> bool:
    """Whether a build's directory has all its pins; without `attached`, but for the links."""
    links = directory.glob(f"{LINK}*")
    return (directory / COMPLETE).exists() and (not attached or any(links))


def published_s(directory: Path) -> float:
    """When a complete build was pinned, in seconds since the epoch."""
    return (directory / COMPLETE).stat().st_mtime


def event_format(directory: Path) -> int:
    """The CW_FORMAT that the records of this build have; 0 if it does not say."""
    if not (directory / FORMAT).exists():
        return 0
    descriptor = libbpf.get_pin(str(directory / FORMAT))
    try:
        return libbpf.map_info(descriptor).value_size
    finally:
        os.close(descriptor)


def builds(pin_dir: Path) -> Iterator[Path]:
    """The builds that have pins, complete or not."""
    yield from sorted(path for path in pin_dir.iterdir() if path.is_dir())


def detach(directory: Path) -> None:
    """Remove a build's links: its programs stop, its maps stay."""
    for path in directory.glob(f"{LINK}*"):
        path.unlink()


def remove(directory: Path) -> None:
    """Remove all pins of a build, links first. Nothing happens if there are none."""
    if not directory.is_dir():
        return
    detach(directory)
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def remove_all(pin_dir: Path) -> list[Path]:
    """Remove the builds of a pin directory, and itself; returns their directories."""
    if not pin_dir.is_dir():
        return []
    found = list(builds(pin_dir))
    for directory in found:
        remove(directory)
    remove_empty(pin_dir)
    return found


def remove_empty(pin_dir: Path) -> None:
    """Remove the pin directory itself unless something is in it."""
    try:
        pin_dir.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
