"""The comparison of snapshots: every case under every peer, taking turns within each round.

In a round one process serves all peers, so that they meet the same memory; only
the sparse one is started anew for each, because gcore touches all of it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from bench.launch import LaunchError
from bench.model import MIB, LiveCase, Result, Say, Snapshot
from bench.peers import Unavailable, disk_of, scratch
from bench.programs import ROOT
from bench.settle import available_memory, settle
from bench.steady import Steady, elsewhere, running
from bench.takers import Taker
from tests.system.settings import kernel_settings

RATE = 36  # MiB/s: a moderate writer
SPARSE_GIB, SPARSE_MIB = 20, 200  # the mapping, and what is touched of it
_PAGE = 4096
_QUIET_S, _QUIET_TRIES = 0.1, 5  # in which the worker's own speed is measured, before each snapshot
_SPARE = 3 << 30  # bytes of memory that no case may take
_WARM = 1 << 30  # bytes of free memory that are in use before each snapshot
_PATIENCE_S = 300.0


def _size(size: str, mib: int, threads: int, rate: int, rounds: int) -> LiveCase:
    doing = f"writes {rate} MiB/s" if rate else "idle"
    return LiveCase(
        name=f"snap-{size}-{threads}-{'writer' if rate else 'idle'}",
        mib=mib,
        threads=threads,
        rate=rate,
        rounds=rounds,
        about=f"Snapshot: {size} resident, {threads} threads, {doing}",
    )


THREADS_CASE = LiveCase(
    name="snap-threads",
    mib=16,
    threads=1000,
    rounds=3,
    about="Snapshot: 1,000 threads, 16 MiB resident",
)
LIVE_CASES = (
    _size("256MiB", 256, 16, 0, 3),
    _size("256MiB", 256, 16, RATE, 3),
    _size("256MiB", 256, 200, 0, 2),
    _size("256MiB", 256, 200, RATE, 2),
    _size("2GiB", 2048, 16, 0, 3),
    _size("2GiB", 2048, 16, RATE, 2),
    _size("2GiB", 2048, 200, 0, 1),
    _size("2GiB", 2048, 200, RATE, 1),
    _size("6GiB", 6144, 16, 0, 1),
    _size("6GiB", 6144, 16, RATE, 2),
    _size("6GiB", 6144, 200, 0, 1),
    _size("6GiB", 6144, 200, RATE, 1),
    LiveCase(
        name="snap-sparse",
        mib=SPARSE_MIB,
        threads=16,
        sparse_gib=SPARSE_GIB,
        rounds=2,
        about=f"Snapshot: a mapping of {SPARSE_GIB} GiB with {SPARSE_MIB} MiB touched, 16 threads",
    ),
    THREADS_CASE,
)
QUICK_LIVE = ("snap-256MiB-16-writer",)


def compare(
    cases: Sequence[LiveCase],
    takers: Sequence[Taker],
    rounds: int | None,
    result: Result,
    say: Say,
) -> None:
    """Run all rounds; samples, absent peers and notes go to `result`.

    rounds: at most this many of each case. A slow peer has fewer rounds of large cases.
    """
    for case in cases:
        if not _fits(case, result):
            continue
        if rounds is not None:
            case = msgspec.structs.replace(case, rounds=min(case.rounds, rounds))  # noqa: PLW2901
        result.live_cases.append(case)
        for turn in range(case.rounds):
            present = [t for t in takers if t.name not in result.absent and turn < t.rounds(case)]
            first = turn % max(len(present), 1)  # nobody is always after the same one
            say(f"{case.name}, round {turn + 1}")
            _round(case, [*present[first:], *present[:first]], turn + 1, result)


def _fits(case: LiveCase, result: Result) -> bool:
    memory, disk = available_memory(), shutil.disk_usage(ROOT).free
    wanted = 2 * case.resident + (case.sparse_gib << 30)  # a pre-copy is staged on the disk
    if case.resident + _SPARE <= memory and wanted + _SPARE <= disk:
        return True
    result.notes.append(
        f"{case.name}: left out, {memory >> 30} GiB of memory and {disk >> 30} GiB of disk are "
        "too little for it"
    )
    return False


def _round(case: LiveCase, takers: Sequence[Taker], turn: int, result: Result) -> None:
    # the lock: nobody crashes meanwhile for a test or another benchmark
    with kernel_settings(), ExitStack() as started:
        found: Steady | None = None
        for taker in takers:
            try:
                if found is None or case.sparse_gib:
                    started.close()
                    found = started.enter_context(running(case))
                sample = one_snapshot(taker, case, found)
            except Unavailable as error:
                result.absent[taker.name] = str(error)
            except (LaunchError, subprocess.SubprocessError) as error:
                result.notes.append(f"{case.name}, round {turn}: {taker.name}: {error}")
                found = None
            else:
                result.snapshots.append(msgspec.structs.replace(sample, round=turn))


def one_snapshot(taker: Taker, case: LiveCase, target: Steady) -> Snapshot:
    """Take one, ask the target what it noticed, and remove what was written.

    Raises Unavailable, or subprocess.SubprocessError if the command fails.
    """
    with scratch() as folder:
        core = folder / "core"
        command = taker.command(target.pid, case, core)
        settle(min(case.resident, _WARM))
        speed = _own_speed(target)
        before = target.switches()
        target.window()
        seconds, output = _timed(command)
        during, after = target.window(), target.switches()
        account = taker.account(output)
        return Snapshot(
            peer=taker.name,
            case=case.name,
            round=0,
            stop_ms=during.stop_ms,
            stall_ms=during.stall_ms,
            total_s=seconds,
            disk=disk_of(taker.written(target.pid, core)),
            interrupted=during.interrupted,
            woken=sum(count != before.get(tid) for tid, count in after.items()),
            throughput=during.loops / during.seconds / speed,
            written=_written(case, during.written, during.seconds),
            method=account.method,
            held_ms=account.held_ms,
        )


def _own_speed(target: Steady) -> float:
    """Loops per second while nobody looks: the best of some tries, which nothing disturbed."""
    found = []
    for _ in range(_QUIET_TRIES):
        target.window()
        time.sleep(_QUIET_S)  # it works meanwhile
        quiet = target.window()
        found.append(quiet.loops / quiet.seconds)
    return max(found)


def _timed(command: Sequence[str]) -> tuple[float, str]:
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
        preexec_fn=elsewhere,
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise subprocess.SubprocessError(f"status {done.returncode}: {' '.join(last)}")
    return seconds, done.stdout


def _written(case: LiveCase, pages: int, seconds: float) -> float | None:
    return pages * _PAGE / (case.rate * MIB * seconds) if case.rate else None
