"""Crash loops, many at once: deaths a second, and how long the parents wait for them; and a
bystander in a session of its own, whose children crash now and then."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from bench.coreward import UNLIMITED_CAPTURES, Coreward, CorewardSession, coreward
from bench.fates import Death
from bench.model import Figure, Say
from bench.peers import Peer, Session, Unavailable, nothing
from bench.processes import memory_kib
from bench.programs import build

LOOPS = 16
SECONDS = 10
BYSTANDERS = 200  # in that time
RATE_TARGET, WAIT_TARGET, MEMORY_TARGET = 500.0, 100.0, 200.0  # 1/s, ms, MiB
_PATIENCE = "250ms"  # hold.patience, as by default
_PATIENCE_S = 60.0  # until all is on record


class _Storm(NamedTuple):
    deaths: int
    worst_ms: float
    mean_ms: float
    bystanders_ms: list[float]  # their waits, the shortest first


def measure(peers: Sequence[Peer], say: Say) -> list[Figure]:
    """The same storm under each peer. Those that cannot run are left out."""
    figures: list[Figure] = []
    for name, how in _ways(peers):
        say(f"storm of {LOOPS} crash loops: {name}")
        try:
            with how as session:
                storm = _storm(session)
                figures += _figures(name, storm, session)
        except Unavailable as error:
            say(f"{name}: {error}")
    return figures


def _ways(peers: Sequence[Peer]) -> Iterator[tuple[str, AbstractContextManager[Session]]]:
    """Coreward by its default policy, and by one that wants the core of each death; before the pipe
    a helper that does nothing."""
    for peer in peers:
        if isinstance(peer, Coreward):
            if peer.backend == "pipe":
                yield "a helper that does nothing", nothing()
            yield peer.name, coreward(peer.backend, "", _PATIENCE)
            every = coreward(peer.backend, UNLIMITED_CAPTURES, _PATIENCE)
            yield f"{peer.name}, every core wanted", every
        else:
            yield peer.name, peer.session()


def _storm(session: Session) -> _Storm:
    limit = resource.RLIM_INFINITY if session.core_limit < 0 else session.core_limit
    limited = ["prlimit", f"--core={limit}"]
    with subprocess.Popen(
        [*limited, str(build("series")), str(BYSTANDERS), str(SECONDS)],
        cwd=session.folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as bystander:
        done = subprocess.run(
            [*limited, str(build("storm")), str(LOOPS), str(SECONDS)],
            cwd=session.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = bystander.communicate()[0].splitlines()
    deaths, worst_us, mean_us = map(int, done.stdout.split())
    waits = sorted(Death.of(line).wait_s * 1e3 for line in lines)
    return _Storm(deaths, worst_us / 1e3, mean_us / 1e3, waits)


def _figures(name: str, storm: _Storm, session: Session) -> list[Figure]:
    ours = isinstance(session, CorewardSession)
    recorded = _on_record(session, storm.deaths) if ours else storm.deaths
    figures = [
        Figure(
            name=f"storm, {name}: deaths",
            value=recorded / SECONDS,
            unit="1/s",
            target=RATE_TARGET if ours else None,
            at_least=True,
            detail=f"{recorded} of {storm.deaths} on record" if ours else "",
        ),
        Figure(
            name=f"storm, {name}: longest wait",
            value=storm.worst_ms,
            unit="ms",
            target=WAIT_TARGET if ours else None,
            detail=f"{storm.mean_ms:.1f} ms in the mean",
        ),
        Figure(
            name=f"storm, {name}: longest wait of a bystander",
            value=storm.bystanders_ms[-1],
            unit="ms",
            target=WAIT_TARGET if ours else None,
            detail=f"p99 {storm.bystanders_ms[len(storm.bystanders_ms) * 99 // 100]:.1f} ms",
        ),
    ]
    if ours:
        peak = memory_kib(session.pid, "VmHWM") / 1024
        figures.append(
            Figure(name=f"storm, {name}: agent", value=peak, unit="MiB", target=MEMORY_TARGET)
        )
    return figures


def _on_record(session: CorewardSession, wanted: int) -> int:
    """How many deaths of the storm are on record once all are, or after a minute."""
    deadline = time.monotonic() + _PATIENCE_S
    while (found := sum(map(_stands_for, _records(session)))) < wanted:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return found


def _records(session: CorewardSession) -> list[dict[str, Any]]:
    files = session.agent.store.glob("crashes/*/record.json")
    found = [json.loads(file.read_text()) for file in files]
    return [record for record in found if record["comm"] == "storm"]


def _stands_for(record: dict[str, Any]) -> int:
    return record["count"] or 1
