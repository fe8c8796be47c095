"""`coreward rm`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from collector.cli import render
from collector.cli.choice import before, json_argument, parsed
from collector.errors import StoreError, UsageError
from collector.model import Record
from collector.policy.units import parse_duration
from collector.store.filter import Filter
from collector.store.store import Store

_TOGETHER = 256  # records that are in memory at a time


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed. The record's facts are None if the record was damaged."""

    id: str
    freed: int  # bytes of disk
    time: datetime.datetime | None = None
    comm: str | None = None
    pid: int | None = None


class RmVerb:
    """Removes records and their cores, and says which. It asks nothing. If one of the IDs is
    unknown or ambiguous, nothing is removed."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("ids", nargs="*", metavar="ID", help="`latest`, or first digits")
        parser.add_argument("--all", action="store_true", help="every record")
        parser.add_argument("--older-than", metavar="AGE", help="deaths longer ago: 12h, 7d, 2w")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if bool(args.ids) + args.all + (args.older_than is not None) != 1:
            raise UsageError("rm: give either IDs, or --all, or --older-than AGE")
        damage: list[StoreError] = []
        with Store(args.store, create=False) as store:
            chosen = _chosen(store, args, damage)
            removed = [one for some in _some(chosen) for one in _remove(store, some)]
        if args.json:
            render.print_json(removed)
        else:
            print("\n".join(_told(removed)))
        render.print_lost(damage)
        return 0


def _chosen(store: Store, args: argparse.Namespace, damage: list[StoreError]) -> Iterable[str]:
    """The ids to remove; all of them exist. NotFound or Ambiguous before anything is removed."""
    if args.all:
        return sorted(store.ids())
    if args.older_than is not None:
        age = parsed("--older-than", parse_duration, args.older_than)
        limit = before(datetime.datetime.now(datetime.UTC), age)
        return [one.id for one in store.each(Filter(until=limit), damage.append)]
    return dict.fromkeys(store.resolve(name) for name in args.ids)


def _some(ids: Iterable[str]) -> Iterator[list[str]]:
    left = iter(ids)
    while some := list(islice(left, _TOGETHER)):
        yield some


def _remove(store: Store, ids: list[str]) -> Iterator[Removed]:
    """Remove these, but for those where another process was faster."""
    records: dict[str, Record] = {}
    for id in ids:
        with contextlib.suppress(StoreError):
            records[id] = store.get(id)
    for id, freed in store.remove_all(ids):
        record = records.get(id)
        if record is None:
            yield Removed(id=id, freed=freed)
        else:
            yield Removed(id=id, freed=freed, time=record.time, comm=record.comm, pid=record.pid)


def _told(removed: list[Removed]) -> list[str]:
    if not removed:
        return ["nothing to remove"]
    lines = []
    for one in removed:
        what = "a damaged record"
        if one.time is not None:
            what = f"{render.clean(one.comm)}, pid {one.pid}, {render.local_time(one.time)}"
        lines.append(f"removed {one.id}: {what}; {render.size(one.freed)} freed")
    return lines
