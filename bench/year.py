"""`python -m bench.year`: a year of deaths in one store, and what is left of them.

    python -m bench.year DIR --deaths 200000 --services 300 --loops 3 --size 2GiB --kills 10

Deaths of many services, a few of which crash in a loop and make nine of ten; each tenth death has
a core. They are put as an agent puts them, and the store is trimmed as often as an agent trims it.
The process that does it is killed again and again, at a step of the disk that moves, and the next
one goes on. No process is crashed for it, so it runs anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from collector.model import Capture, Cause, CrashSite, Frame, Outcome, Record
from collector.policy.units import parse_size
from collector.store import folders
from collector.store.filter import Filter
from collector.store.limits import Limits
from collector.store.retention import trim
from collector.store.store import Store

_BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_YEAR_S = 365 * 86400
_LOOPS_PART = 0.9  # of all deaths
_CORE_PART = 0.1
_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)  # bytes of cores
_TRIM_EVERY = 500  # deaths; agent.retain
_BATCH = 100  # deaths that are put together
_ROOT = Path(__file__).parents[1]


class Year(msgspec.Struct, frozen=True, kw_only=True):
    deaths: int
    services: int
    loops: int  # of these: crash on and on
    size: int  # bytes that the store may hold
    records: int  # that it may hold
    kills: int  # of the process that puts and trims
    core_sizes: tuple[int, ...] = _SIZES


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What a service has left in the end."""

    service: str
    deaths: int  # that it had
    records: int
    cores: int
    bytes: int
    has_first: bool  # its very first death is still there
    has_newest: bool


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    left: list[Left]
    kills: int  # that really were in the middle of something
    seconds: float
    bytes: int
    damaged: list[str]
    orphans: int  # folders without a row, or rows without a folder
    leftovers: int  # unfinished files after the last start


def death(year: Year, number: int) -> tuple[str, Record, int]:
    """The death of this number, the same each time: its service, record, and bytes of its core."""
    chance = random.Random(number)
    loops = number >= year.services and chance.random() < _LOOPS_PART
    quiet = year.loops + chance.randrange(year.services - year.loops)
    which = number if number < year.services else chance.randrange(year.loops) if loops else quiet
    service = f"s{which:03}.service"
    core = number < year.services or chance.random() < _CORE_PART
    size = chance.choice(year.core_sizes) if core else 0
    record = Record(
        id=f"{chance.getrandbits(64):016x}",
        time=_BEGIN + datetime.timedelta(seconds=number * _YEAR_S / year.deaths),
        pid=number + 2,
        tid=number + 2,
        cause=Cause.SIGNAL,
        comm=f"s{which:03}",
        start_ns=number,
        exe=f"/usr/sbin/s{which:03}",
        uid=0,
        unit=service,
        signal=11,
        signal_name="SIGSEGV",
        reason=f"SIGSEGV: read from address 0x8 in `serve` (s{which:03}.c:{chance.randrange(3)})",
        site=CrashSite(build_id="ab" * 20, offset=chance.randrange(3)),
        frames=[Frame(pc=0x55D0C0DE1234 + n, function=f"f{n}", offset=n) for n in range(12)],
        capture_wanted=Capture.FULL,
        capture=Capture.FULL if core else Capture.RECORD,
        outcome=Outcome.COMPLETE if core else Outcome.RECORDED,
        core="core.zst" if core else None,
        core_size=size if core else None,
    )
    return service, record, size


def live(folder: Path, year: Year, first: int, last: int) -> None:
    """What an agent does for the deaths from `first` up to, but not with, `last`."""
    limits = Limits(max_size=year.size, max_records=year.records)
    with Store(folder, create=True) as store:
        store.clean_partial()
        for begin in range(first, last, _BATCH):
            with store.batch():
                for number in range(begin, min(last, begin + _BATCH)):
                    _die(store, year, number)
            print(min(last, begin + _BATCH), flush=True)
            if begin % _TRIM_EVERY < _BATCH:
                trim(store, limits, datetime.datetime.now(datetime.UTC))
        trim(store, limits, datetime.datetime.now(datetime.UTC))


def _die(store: Store, year: Year, number: int) -> None:
    """As the agent does: a first record, the core under another name, the whole record."""
    _, record, size = death(year, number)
    if size:
        store.put(msgspec.structs.replace(record, reason=None, core=None, core_size=None))
        folder = store.folder(record.id)
        fd = os.open(folder / ".tmp-core", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
        (folder / ".tmp-core").rename(folder / "core.zst")
    store.put(record)


def killed_at(step: int) -> None:
    """End this process without a word before the step of this number that the disk sees."""
    seen = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            nonlocal seen
            seen += 1
            if seen >= step:
                os._exit(9)
            return function(*given, **named)

        return call

    for name in ("unlink", "rename", "rmdir", "mkdir", "fsync"):
        setattr(folders.os, name, counted(getattr(os, name)))


def run(folder: Path, year: Year) -> Outcomes:
    """The whole year, and what is left of it."""
    begun = time.monotonic()
    chance = random.Random(year.kills)
    done = kills = 0
    for part in range(year.kills + 1):
        last = year.deaths * (part + 1) // (year.kills + 1)
        # somewhere in its part of the year: each death takes some steps of the disk
        step = chance.randrange(100, 4 * (last - done)) if part < year.kills else 0
        while done < last:
            done, killed = _run_part(folder, year, done, last, step)
            kills, step = kills + killed, 0  # who starts after a kill lives on
    return _outcomes(folder, year, kills, time.monotonic() - begun)


def _run_part(folder: Path, year: Year, first: int, last: int, step: int) -> tuple[int, bool]:
    """An agent for these deaths, which is killed before a step of the disk, 0: never; how far it
    came, and whether it was killed."""
    order = msgspec.json.encode([str(folder), year, first, last, step]).decode()
    child = subprocess.run(
        [sys.executable, "-m", "bench.year", "--part", order],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        check=False,
    )
    if child.returncode not in (0, 9):
        raise RuntimeError(f"the deaths from {first} on ended with status {child.returncode}")
    said = child.stdout.split()
    return int(said[-1]) if said else first, child.returncode == 9


def _outcomes(folder: Path, year: Year, kills: int, seconds: float) -> Outcomes:
    first: dict[str, str] = {}
    newest: dict[str, str] = {}
    deaths: dict[str, int] = {}
    for number in range(year.deaths):
        service, record, _ = death(year, number)
        first.setdefault(service, record.id)
        newest[service] = record.id
        deaths[service] = deaths.get(service, 0) + 1
    with Store(folder, create=True) as store:
        store.clean_partial()
        found = store.repair(alone=True)
        held = {one.service: one.held for one in store.victims.sizes(kept=True)}
        records: dict[str, list[Record]] = {service: [] for service in deaths}
        for record in store.each(Filter()):
            records[str(record.unit)].append(record)
        return Outcomes(
            left=[
                Left(
                    service=service,
                    deaths=deaths[service],
                    records=len(records[service]),
                    cores=sum(store.core_path(one) is not None for one in records[service]),
                    bytes=held.get(service, 0),
                    has_first=store.has(first[service]),
                    has_newest=store.has(newest[service]),
                )
                for service in sorted(deaths)
            ],
            kills=kills,
            seconds=seconds,
            bytes=sum(held.values()),
            damaged=found.damaged,
            orphans=found.rows_removed + abs(found.records - store.count()),
            leftovers=found.unfinished,
        )


def _table(found: Outcomes, year: Year) -> list[str]:
    lines = ["service           deaths  records  cores      MiB  first  newest"]
    loops = found.left[: year.loops]
    others = sorted(found.left[year.loops :], key=lambda one: one.records)
    few = [*loops, *others[:2], *others[len(others) // 2 : len(others) // 2 + 1], *others[-2:]]
    for one in few:
        marks = "  ".join(f"{'yes' if has else 'no':<5}" for has in (one.has_first, one.has_newest))
        numbers = f"{one.deaths:>8}{one.records:>9}{one.cores:>7}{one.bytes / (1 << 20):>9.1f}"
        lines.append(f"{one.service:<16}{numbers}  {marks}".rstrip())
    lines.append(
        f"all of {len(found.left)}: {sum(one.records for one in found.left):,} records, "
        f"{sum(one.cores for one in found.left):,} cores, {found.bytes / (1 << 20):,.0f} MiB; "
        f"the first of {sum(one.has_first for one in found.left)}, the newest of "
        f"{sum(one.has_newest for one in found.left)}; killed {found.kills} times; "
        f"{len(found.damaged)} damaged, {found.orphans} orphans, {found.leftovers} leftovers; "
        f"{found.seconds:,.0f} s"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.year", description="A year of deaths in a store.")
    parser.add_argument("folder", nargs="?", type=Path, help="where the store is made; empty")
    parser.add_argument("--deaths", type=int, default=200_000)
    parser.add_argument("--services", type=int, default=300)
    parser.add_argument("--loops", type=int, default=3)
    parser.add_argument("--size", type=parse_size, default=2 << 30)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of `run`
    args = parser.parse_args()
    if args.part:
        folder, year, first, last, step = msgspec.json.decode(
            args.part, type=tuple[str, Year, int, int, int]
        )
        if step:
            killed_at(step)
        live(Path(folder), year, first, last)
        return
    if args.folder is None:
        parser.error("give a folder")
    year = Year(
        deaths=args.deaths,
        services=args.services,
        loops=args.loops,
        size=args.size,
        records=args.records,
        kills=args.kills,
    )
    print("\n".join(_table(run(args.folder, year), year)))


if __name__ == "__main__":
    main()
