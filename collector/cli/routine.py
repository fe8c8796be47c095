"""Ends that were no crashes, for `coreward list`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from collector.cli import render
from collector.errors import StoreError, UsageError
from collector.store.filter import Filter, glob
from collector.store.routine import BY, RoutineEnd, Way
from collector.store.store import Store

_HEAD = ["TIME", "SIGNAL", "PROCESS", "PID", "ENDED BY", "UNIT"]
_USUAL = 100  # that are shown if nobody says how many


def routine_line(store: Store, wanted: Filter) -> str | None:
    """How many there are that match, if there are any."""
    try:
        count = sum(end.count for end in _matching(store, wanted))
    except StoreError:
        return None  # what cannot be read is said by `--routine`
    if not count:
        return None
    ends = "end" if count == 1 else "ends"
    return f"{count:,} routine {ends} beside them; --routine shows the last ones"


def show_routine(store: Store, wanted: Filter, args: argparse.Namespace) -> int:
    """Print them, the newest first."""
    if args.kept or args.cause:
        raise UsageError("list: routine ends have no cause, and none can be kept")
    if args.namespace or args.pod:
        raise UsageError("list: of routine ends the pod is not known")
    found = _matching(store, wanted)
    if args.json:
        render.print_json_array(itertools.islice(found, args.limit))
        return 0
    most = None if args.all else _USUAL if args.limit is None else args.limit
    rows = [_HEAD, *map(_row, itertools.islice(found, most))]
    if len(rows) == 1:
        print(f"no routine ends on record in {render.clean(store.path)}")
        return 0
    screen = render.Screen()
    for number, row in enumerate(render.columns(rows, [_HEAD.index("PID")])):
        line = render.GAP.join(row).rstrip()
        line = line if screen.width is None else render.cut(line, screen.width)
        print(screen.bold(line) if number == 0 else line)
    return 0


def _matching(store: Store, wanted: Filter) -> Iterator[RoutineEnd]:
    given = (wanted.cause, wanted.kept, wanted.namespace, wanted.pod)
    if any(one is not None for one in given):  # of which a routine end says nothing
        return
    for end in store.routine.each():
        if (
            (wanted.since is None or end.time >= wanted.since)
            and (wanted.until is None or end.time < wanted.until)
            and (wanted.signal is None or end.signal == wanted.signal)
            and glob(wanted.comm, end.comm)
            and glob(wanted.exe, end.exe)
            and glob(wanted.unit, end.unit)
        ):
            yield end


def _row(end: RoutineEnd) -> list[str]:
    by = BY[end.way]
    if end.way is Way.PARENT:
        by = f"{by} {end.by_comm} ({end.by_pid})"
    return [
        render.local_time(end.time),
        render.clean(end.signal_name or end.signal or "-"),
        render.clean(end.exe or end.comm),
        str(end.pid),
        render.clean(by),
        render.clean(end.unit or "-"),
    ]
