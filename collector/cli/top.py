"""`coreward top`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from collector.cli import render
from collector.cli.choice import json_argument, parsed, reading
from collector.cli.output import terminal
from collector.errors import StoreError, UsageError
from collector.model import Record
from collector.policy.units import parse_duration
from collector.store.encoding import json_line
from collector.store.filter import Filter
from collector.store.recent import WINDOWS, Died, of_records
from collector.store.store import Store

_EVERY = "2s"
_FEWEST_S = 0.1
_MOST_S = 86400.0
_USUAL = 10  # of each kind, in a pipe
_LONGEST = 200  # characters of a name that a table shows
_AROUND = 5  # lines that are no rows: the head, two headings, blank ones
_WINDOWS = ("minute", "hour", "day")
_KEYS = {window[0]: window for window in _WINDOWS}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Deaths(msgspec.Struct, frozen=True, kw_only=True):
    """How many there were in the last minute, hour and day. Those that one record stands for count
    as if they had come evenly."""

    minute: int = 0
    hour: int = 0
    day: int = 0


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit, or a program that is of none."""

    unit: str | None
    exe: str | None  # of one without a unit
    deaths: Deaths
    last: datetime.datetime


class Bug(msgspec.Struct, frozen=True, kw_only=True):
    signature: str | None  # None: of records that have none
    text: str | None
    deaths: Deaths
    last: datetime.datetime


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """What `top --json` prints."""

    time: datetime.datetime
    deaths: Deaths
    units: list[Unit]
    signatures: list[Bug]


class TopVerb:
    """Shows who dies most, by unit and by signature: the deaths of the last minute, hour and day,
    and how long ago the last one was. On a terminal it is shown anew every two seconds until `q` is
    pressed; `m`, `h` and `d` sort by minute, hour and day. In a pipe, and with --once, it is shown
    once. With --json it is one document with --once, and else one in each line."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="show it once")
        parser.add_argument(
            "--every", metavar="TIME", default=_EVERY, help=f"how often (default: {_EVERY})"
        )
        parser.add_argument(
            "--sort", choices=_WINDOWS, default="hour", help="who is first (default: hour)"
        )
        parser.add_argument(
            "-n", "--limit", type=int, metavar="N", help="at most N units, and N signatures"
        )
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        every = parsed("--every", parse_duration, args.every)
        if every < _FEWEST_S:
            raise UsageError(f"--every {args.every}: must be at least {_FEWEST_S * 1000:.0f}ms")
        if every > _MOST_S:
            raise UsageError(f"--every {args.every}: must be at most 1d")
        if args.limit is not None and args.limit < 1:
            raise UsageError(f"--limit {args.limit}: must be at least 1")

        def look(sort: str) -> Top:
            with reading(args.store) as store:  # each time: an agent may have made it anew
                return top_of(store, datetime.datetime.now(datetime.UTC), sort)

        screen = render.Screen()
        if args.json:
            return _json(look, every, args)
        shown = terminal()
        if args.once or shown is None or shown.dumb:
            print("\n".join(lines(look(args.sort), args.sort, screen, args.limit or _USUAL)))
            return 0
        from collector.cli.live import live  # noqa: PLC0415 (only here)

        sort = args.sort

        def draw(key: str | None, height: int) -> list[str]:
            nonlocal sort
            sort = _KEYS.get(key or "", sort)
            most = args.limit or max((height - _AROUND) // 2, 1)
            return lines(look(sort), sort, render.Screen(), most, live=True)[:height]

        live(draw, every)
        return 0


def _json(look: Callable[[str], Top], every: float, args: argparse.Namespace) -> int:
    while True:
        found = _cut(look(args.sort), args.limit)
        if args.once:
            render.print_json(found)
            return 0
        sys.stdout.write(json_line(found))
        sys.stdout.flush()
        time.sleep(every)


def _cut(found: Top, most: int | None) -> Top:
    return msgspec.structs.replace(
        found, units=found.units[:most], signatures=found.signatures[:most]
    )


def top_of(store: Store, now: datetime.datetime, sort: str) -> Top:
    """One look at the store."""
    died, texts = _died(store, now)
    units: dict[tuple[str | None, str | None], list[Died]] = {}
    bugs: dict[str | None, list[Died]] = {}
    for one in died:
        program = None if one.unit else one.exe or one.comm
        units.setdefault((one.unit or None, program), []).append(one)
        bugs.setdefault(one.signature, []).append(one)
    return Top(
        time=now,
        deaths=_sum(died),
        units=sorted(
            (
                Unit(unit=unit, exe=exe, deaths=_sum(some), last=_last(some))
                for (unit, exe), some in units.items()
            ),
            key=lambda one: (*_most_first(one.deaths, sort), one.unit or one.exe or ""),
        ),
        signatures=sorted(
            (
                Bug(signature=id, text=texts.get(id), deaths=_sum(some), last=_last(some))
                for id, some in bugs.items()
            ),
            key=lambda one: (*_most_first(one.deaths, sort), one.signature or ""),
        ),
    )


def _died(store: Store, now: datetime.datetime) -> tuple[list[Died], dict[str | None, str]]:
    """Who died, and the texts of their signatures."""
    try:
        single, storms = store.recent.single(now), store.recent.storms(now)
        single += store.recent.older_storms(now)
        texts: dict[str | None, str] = {}
        texts.update(store.signatures.texts())
    except StoreError:  # a user's own, or no index: the records are read
        since = now - datetime.timedelta(seconds=WINDOWS[-1])
        # a storm that goes on may have begun before
        every = store.each(Filter(), lambda _: None)
        records = [one for one in every if max(one.time, one.last or one.time) >= since]
        texts = {one.signature.id: one.signature.text or "" for one in records if one.signature}
        return of_records(records, now), texts
    return [*single, *of_records(_read(store, storms), now)], texts


def _read(store: Store, ids: Iterable[str]) -> Iterator[Record]:
    for id in ids:
        with contextlib.suppress(StoreError):  # removed meanwhile, or damaged: `list` says so
            yield store.get(id)


def _sum(died: Sequence[Died]) -> Deaths:
    return Deaths(
        minute=round(sum(one.minute for one in died)),
        hour=round(sum(one.hour for one in died)),
        day=round(sum(one.day for one in died)),
    )


def _last(died: Sequence[Died]) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=max(one.last for one in died))


def _most_first(deaths: Deaths, sort: str) -> tuple[int, ...]:
    numbers = {"minute": deaths.minute, "hour": deaths.hour, "day": deaths.day}
    return (-numbers[sort], -deaths.minute, -deaths.hour, -deaths.day)


def lines(
    found: Top, sort: str, screen: render.Screen, most: int, *, live: bool = False
) -> list[str]:
    """What is shown. most: rows of each of the two tables."""
    total = found.deaths
    keys = "   q ends, m h d sort" if live else ""
    head = (
        f"{render.local_time(found.time)}   deaths in the last minute {total.minute:,}, "
        f"hour {total.hour:,}, day {total.day:,}{keys}"
    )
    made = [_fit(head, screen)]
    if not total.day:
        return made
    heads = [f"{window.upper()}{'*' * (window == sort)}" for window in _WINDOWS]
    units = [
        [*_numbers(one.deaths, one.last, found.time), render.clean(one.unit or one.exe or "?")]
        for one in found.units[:most]
    ]
    bugs = [
        [*_numbers(one.deaths, one.last, found.time), _bug(one)] for one in found.signatures[:most]
    ]
    for title, rows, whole in (
        ("UNIT", units, len(found.units)),
        ("SIGNATURE", bugs, len(found.signatures)),
    ):
        more = f" ({len(rows)} of {whole})" if whole > len(rows) else ""
        table = [[*heads, "LAST", title + more], *rows]
        made.append("")
        for number, row in enumerate(render.columns(table, range(4))):
            line = _fit(render.GAP.join(row).rstrip(), screen)
            made.append(screen.bold(line) if number == 0 else line)
    return made


def _bug(bug: Bug) -> str:
    if bug.signature is None:
        return "without a signature"
    return f"{bug.signature}{render.GAP}{render.clean(bug.text or '?')}"


def _numbers(
    deaths: Deaths, last: datetime.datetime, now: datetime.datetime
) -> tuple[str, str, str, str]:
    return f"{deaths.minute:,}", f"{deaths.hour:,}", f"{deaths.day:,}", render.age(last, now)


def _fit(line: str, screen: render.Screen) -> str:
    return render.cut(line, screen.width or _LONGEST)
