"""For the tests of `collector.probe`: a probe with pins of its own, and waiting for its events."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from collector.model import Event, Exit, ProcessKey
from collector.probe import files, pins
from collector.probe.build import build
from collector.probe.probe import Probe, open_probe
from tests.system.scratch import NAME, tmpfs
from tests.system.victims import PATIENCE, Stuck

LOADERS = ("core", "bcc")


def pin_dir(name: str) -> Path:
    """A pin directory that no agent and no other test uses."""
    return Path(f"/sys/fs/bpf/{NAME}-{name}")


@contextmanager
def opened(loader: str, name: str) -> Iterator[Probe]:
    """A probe for one loader; its pins are removed at the end."""
    if loader == "core" and not files.object_file().exists():
        build(files.object_file().parent)
    directory = pin_dir(f"{name}-{loader}")
    try:
        with open_probe(loader, directory) as probe:
            yield probe
    finally:
        pins.remove_all(directory)


def drain_until(probe: Probe, pid: int) -> list[Event]:
    """All events until the exit of `pid` (its own included), oldest first."""
    found: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(probe.fileno(), select.POLLIN)
    while not any(isinstance(event, Exit) and event.who.key.pid == pid for event in found):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Stuck(f"no exit of {pid} was reported, only {found!r}")
        poll.poll(left * 1000)
        found += probe.drain()
    return found


def all_events(probe: Probe) -> list[Event]:
    """All events until now, also those of others.

    Another process dies: when that is reported, all before it is known.
    """
    marker = subprocess.Popen(["/bin/sleep", "1000"])
    marker.kill()
    marker.wait()
    return drain_until(probe, marker.pid)


def events_of(probe: Probe, pid: int) -> list[Event]:
    """All events of a process that has exited and been waited for."""
    return about(all_events(probe), pid)


def about(events: Sequence[Event], pid: int) -> list[Event]:
    """Those of one process."""
    return [event for event in events if event.who.key.pid == pid]


def key_of(pid: int) -> ProcessKey:
    """The key of a live process, but for the nanoseconds: /proc counts in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ProcessKey(pid, int(fields[19]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK")))


def reader_process(loader: str, directory: Path) -> subprocess.Popen[bytes]:
    """A process that has opened the probe and holds it until it is killed."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom collector.probe.probe import open_probe\n"
        "probe = open_probe(sys.argv[1], Path(sys.argv[2]))\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, loader, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"open\n"
    return reader


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """An overlay file system over a scratch tmpfs; yields where it is mounted."""
    with tmpfs(folder):
        for name in ("lower", "upper", "work", "merged"):
            (folder / name).mkdir()
        options = ",".join(f"{name}dir={folder / name}" for name in ("lower", "upper", "work"))
        merged = folder / "merged"
        subprocess.run(["mount", "-t", "overlay", NAME, "-o", options, str(merged)], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", str(merged)], check=True)
