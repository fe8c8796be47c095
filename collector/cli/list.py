"""`coreward list`."""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Sequence

import msgspec

from collector.cli import render
from collector.cli.choice import filter_arguments, filter_of, json_argument, reading
from collector.errors import StoreError, UsageError
from collector.model import Record
from collector.store.filter import Filter
from collector.store.ids import ID_DIGITS

_HEAD = ["ID", "TIME", "CAUSE", "SIGNAL", "PROCESS", "PID", "CAPTURED", "SIZE", "REASON"]
_TO_THE_RIGHT = ("PID", "SIZE")
_REPEATED = ("CAUSE", "SIGNAL", "SIZE")  # said by the reason, or by `info`
_SHORTEST_ID = 8
_PROCESS_WIDTH = 20  # on a terminal too narrow for everything
_REASON_WIDTH = 24  # a reason cut shorter says nothing


class ListVerb:
    """Lists the deaths on record, newest first. On a terminal it fits the width; in a pipe
    nothing is cut, and --json gives the full records. Filters must all hold; texts are globs."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        filter_arguments(parser)
        parser.add_argument("--limit", type=int, metavar="N", help="at most N deaths")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.limit is not None and args.limit < 0:
            raise UsageError(f"--limit {args.limit}: must not be negative")
        wanted = filter_of(args, datetime.datetime.now(datetime.UTC))
        damage: list[StoreError] = []
        with reading(args.store) as store:
            filters = msgspec.structs.asdict(wanted)
            records = store.list(**filters, limit=args.limit, on_damage=damage.append)
            ids = store.ids()
        if args.json:
            render.print_json(records)
        elif records:
            print("\n".join(table(records, short_id_length(ids), render.Screen())))
        elif args.limit != 0:
            matching = "" if wanted == Filter() else " that match"
            print(f"no deaths{matching} on record in {render.clean(args.store)}")
        render.print_lost(damage)
        return 0


def short_id_length(ids: Sequence[str]) -> int:
    """How many digits tell all these ids apart, and at least eight."""
    ordered = sorted(ids)
    length = _SHORTEST_ID
    for one, next_one in itertools.pairwise(ordered):
        while length < ID_DIGITS and one[:length] == next_one[:length]:
            length += 1
    return length


def table(records: Sequence[Record], id_length: int, screen: render.Screen) -> list[str]:
    """The lines of the list, heading first, as wide as the screen at most."""
    rows = [_HEAD] + [_row(record, id_length) for record in records]
    if screen.width is not None and _width(rows) > screen.width:
        rows = _fitted(rows, screen.width)
    right = [number for number, name in enumerate(rows[0]) if name in _TO_THE_RIGHT]
    lines = []
    for number, row in enumerate(render.columns(rows, right)):
        line = render.GAP.join(row).rstrip()
        if screen.width is not None:
            line = render.cut(line, screen.width)
        lines.append(screen.bold(line) if number == 0 else _coloured(line, id_length, screen))
    return lines


def _row(record: Record, id_length: int) -> list[str]:
    return [
        record.id[:id_length],
        render.local_time(record.time),
        record.cause.value,
        render.clean(record.signal_name or record.signal or "-"),
        render.process(record),
        str(record.pid),
        render.captured(record),
        render.size(record.core_size),
        render.clean(record.reason or "-"),
    ]


def _fitted(rows: list[list[str]], width: int) -> list[list[str]]:
    """Make the rows fit: shorten the reason; if too little is left of it, shorten the process,
    then leave out columns, as many as it takes."""
    rows = [list(row) for row in rows]
    process = rows[0].index("PROCESS")
    if _room(rows, width) < _REASON_WIDTH:
        for row in rows:
            row[process] = render.cut(row[process], _PROCESS_WIDTH)
    for name in _REPEATED:
        if _room(rows, width) >= _REASON_WIDTH:
            break
        column = rows[0].index(name)
        rows = [row[:column] + row[column + 1 :] for row in rows]
    room = max(_room(rows, width), 1)
    return [[*row[:-1], render.cut(row[-1], room)] for row in rows]


def _room(rows: list[list[str]], width: int) -> int:
    """Columns that are left for the reason."""
    return width - _width([row[:-1] for row in rows]) - len(render.GAP)


def _width(rows: Sequence[Sequence[str]]) -> int:
    widths = [max(map(render.cells, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + len(render.GAP) * (len(widths) - 1)


def _coloured(line: str, id_length: int, screen: render.Screen) -> str:
    return screen.red(line[:id_length]) + line[id_length:]
