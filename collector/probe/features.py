"""What this kernel and machine can do for the probe, found out by doing it.

The real programs are loaded, attached and shown a death, then taken away: no configuration file is
read and no version compared, because distributions port features back and forbid others. For
people (`coreward doctor`); the probe itself just tries.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import msgspec

from collector import proof
from collector.errors import CorewardError, ProbeError
from collector.linux import libbpf
from collector.model import Exit, FatalSignal
from collector.native import cpu
from collector.probe import btf, pins
from collector.probe.probe import Probe, open_probe

DOCTORS_PINS = "coreward-doctor-"  # in the bpffs, with a pid behind
_PATIENCE_S = 10.0  # for the events of a death, which take microseconds


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str


def probe_features() -> Iterator[Feature]:
    """Try everything that the probe relies on. Needs root to be meaningful; leaves nothing."""
    yield _tried("kernel types (BTF)", lambda: f"hash {btf.kernel_hash()[:16]}")
    yield _tried("libbpf", _library)
    yield from _loader("core")
    yield from _loader("bcc")
    yield _tried("live processes", _live, cure="`coreward sample` shows no stacks")
    yield _tried("XSAVE layout", _xsave)
    yield _tried("clang", _clang, cure="only needed to build the object")


def _tried(name: str, attempt: Callable[[], str], *, cure: str = "") -> Feature:
    """Whether `attempt` succeeds; it returns the detail."""
    try:
        return Feature(name=name, ok=True, detail=attempt())
    except (CorewardError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return Feature(name=name, ok=False, detail=f"{reason}: {cure}" if cure else reason)


def _loader(loader: str) -> Iterator[Feature]:
    """What the programs tell of a real death when this loader has made them."""
    directory = pins.BPFFS / f"{DOCTORS_PINS}{os.getpid()}"
    name = f"BPF, loader {loader}"
    try:
        with open_probe(loader, directory) as probe:
            try:
                fatal, ended = _death(probe)
            finally:
                probe.unpin()
    except (CorewardError, OSError) as error:
        yield Feature(name=name, ok=False, detail=str(error))
        return
    finally:
        pins.remove_all(directory)  # what a loader that failed has left
    seen = fatal is not None and ended is not None
    detail = "loaded, attached; saw a process die" if seen else "loaded, but saw no process die"
    yield Feature(name=name, ok=seen, detail=detail)
    known = ended is not None and ended.who.exe is not None
    yield Feature(
        name=f"executables of exits, {loader}",
        ok=known,
        detail="told"
        if known
        else "gone when the exit is told (needs Linux >= 6.16, or fentry): rules for `cause: exit` "
        "can match by comm, unit or cgroup, not by exe",
    )
    mapped = ended is not None and bool(ended.mapped)
    yield Feature(
        name=f"backtraces of kills, {loader}",
        ok=mapped,
        detail=f"{len(ended.mapped)} mapped objects told"
        if ended and mapped
        else "mappings are not told (needs the loader core, and Linux >= 6.16 or fentry): "
        "such deaths have registers and a stack without names",
    )


def _death(probe: Probe) -> tuple[FatalSignal | None, Exit | None]:
    """What the probe tells of a child that dies without a hand-off."""
    child = proof.die(dumpable=False)
    os.waitpid(child, 0)
    fatal: FatalSignal | None = None
    poll = select.poll()
    poll.register(probe.fileno(), select.POLLIN)
    deadline = time.monotonic() + _PATIENCE_S
    while (left := deadline - time.monotonic()) > 0:
        poll.poll(left * 1000)
        for event in probe.drain():
            if event.who.key.pid != child:
                continue
            if isinstance(event, FatalSignal):
                fatal = event
            elif isinstance(event, Exit):
                return fatal, event
    return fatal, None


def _library() -> str:
    major, minor = libbpf.version()
    return f"libbpf {major}.{minor}"


def _live() -> str:
    from collector.probe.live import open_live  # noqa: PLC0415 - not for the agent

    with open_live() as opened:
        running = opened.no_clock or "running ones caught by clock interrupts"
        list(opened.sample(os.getpid()))
        return f"threads and stacks of this process by {opened.loader}; {running}"


def _clang() -> str:
    clang = shutil.which("clang")
    if clang is None:
        raise ProbeError("clang is not there")
    done = subprocess.run([clang, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] or clang


def _xsave() -> str:
    found = cpu.probe()
    if isinstance(found, cpu.Unavailable):
        raise ProbeError(found.reason)
    return f"{found.size} bytes per thread, components {found.features:#x}"
