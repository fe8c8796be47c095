"""Cores that are pulled through `coreward mount`, and dumpers that are asked.

Each stands beside what there would be otherwise: a decompressed file; no dumper.

All of a round is measured in one go. A core is that of `steady.c`, which goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.coreward import CorewardSession, coreward, warm_up
from bench.launch import loaded
from bench.model import MIB, Case, Figure, LiveCase, Say
from bench.peers import scratch
from bench.steady import running, steady
from collector.dumpers.client import Client
from collector.dumpers.plugin import NOMATCH
from collector.dumpers.protocol import Message

_COREWARD = [sys.executable, "-m", "collector"]
_START_S = 30.0
_DEATHS = 20  # of each kind in a round
_SMALL = Case(
    name="dumpers", victim="resident", arguments=("8", "4", "random"), rounds=1, resident=8 * MIB,
    about="8 MiB",
)  # fmt: skip


def mounted(mib: int, rounds: int, say: Say) -> list[Figure]:
    """A debugger and a reader in order, on a stored core and a live one of so much memory."""
    case = LiveCase(name="mount", mib=mib, threads=16, rounds=rounds, about="")
    by_gdb, unpacked, rates, live, shares = [], [], [], [], []
    with scratch() as folder, running(case) as process:
        store, place = folder / "store", folder / "mount"
        place.mkdir()
        _run(*_COREWARD, "snapshot", "--store", str(store), str(process.pid))
        (packed,) = store.glob("crashes/*/*.zst")
        with _mount(place, store) as mount:
            core = place / "crashes" / f"{packed.parent.name}.core"
            for turn in range(rounds):
                say(f"mount, {mib} MiB: round {turn + 1}")
                by_gdb.append(_seconds(lambda: _gdb(core)))
                unpacked.append(_seconds(lambda: _unpacked(packed, folder / "plain")))
                ours = _seconds(lambda: _run("dd", f"if={core}", "of=/dev/null", "bs=1M"))
                usual = _seconds(lambda: _run("sh", "-c", f"zstd -dqc {packed} >/dev/null"))
                rates.append(usual / ours)
                before = _read_by(mount)
                live.append(_seconds(lambda: _gdb(place / "live" / f"{process.pid}.core")))
                shares.append((_read_by(mount) - before) / case.resident * 100)
    about = f"{mib} MiB, medians of {rounds} rounds"
    beside = f"{about}; decompressed first: {statistics.median(unpacked):.2f} s"
    return [
        _figure("mount: gdb, backtrace of a compressed core", by_gdb, "s", beside, 1.0),
        _figure("mount: sequential read : zstd -d", rates, "x", about, 0.5, at_least=True),
        _figure("mount: gdb, all backtraces of a live core", live, "s", about, 2.0),
        _figure("mount: memory read for that", shares, "%", about, 1.0),
    ]


def asked(rounds: int, say: Say) -> list[Figure]:
    """From the signal to the wait: with a dumper of others, and one that looks and declines."""
    others, declined, nobody = [], [], []
    with coreward("auto") as session:
        warm_up(session)
        for turn in range(rounds):
            say(f"dumpers: round {turn + 1}")
            alone = _waits(session)
            nobody.append(alone)
            with _dumper(session, "elsewhere"):
                others.append(_waits(session) / alone)
            with _dumper(session, "resident"):
                declined.append(_waits(session) - alone)
    about = f"{statistics.median(nobody):.2f} ms without one; {rounds} rounds of {_DEATHS} deaths"
    return [
        _figure("dumpers: wait, where none wants it : no dumper", others, "x", about, 1.05),
        _figure("dumpers: one that looks and declines", declined, "ms more", about, 5.0),
    ]


def _figure(
    name: str, values: list[float], unit: str, about: str, target: float, *, at_least: bool = False
) -> Figure:
    detail = f"{about}; {min(values):.2f}-{max(values):.2f}"
    value = statistics.median(values)
    return Figure(
        name=name, value=value, unit=unit, target=target, at_least=at_least, detail=detail
    )


@contextlib.contextmanager
def _mount(place: Path, store: Path) -> Iterator[int]:
    """A mount; its pid."""
    with subprocess.Popen(
        [*_COREWARD, "mount", "--store", str(store), str(place)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.terminate()


def _read_by(mount: int) -> int:
    """Bytes that the holders of a mount have read of anything."""
    total = 0
    for task in Path(f"/proc/{mount}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{child}/io").read_text().split()[1])
    return total


def _gdb(core: Path) -> None:
    _run("gdb", "-nx", "-batch", "-ex", "thread apply all bt", str(steady()), str(core))


def _unpacked(packed: Path, plain: Path) -> None:
    _run("zstd", "-dqf", str(packed), "-o", str(plain))
    _gdb(plain)
    plain.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _seconds(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _waits(session: CorewardSession) -> float:
    """Milliseconds from the signal to the return of wait, in the median."""
    found = []
    for _ in range(_DEATHS):
        with loaded(_SMALL, core_limit=session.core_limit, folder=session.folder) as victim:
            shot = victim.fire()
        found.append(shot.wait_ms)
        session.forget(session.agent.record(shot.pid))
    return statistics.median(found)


@contextlib.contextmanager
def _dumper(session: CorewardSession, comm: str) -> Iterator[None]:
    """One that is asked about processes of this name, and declines."""
    door = session.agent.run_dir / "dumper"
    with Client.connect(door, f"declines-{os.urandom(3).hex()}", match=[("comm", comm)]) as client:
        thread = threading.Thread(target=_decline, args=[client])
        thread.start()
        try:
            yield
        finally:
            client.leave()
            thread.join(_START_S)


def _decline(client: Client) -> None:
    event: Message
    for event in client.events():
        if event.verb == "PROBE":
            client.bid(event, NOMATCH)
