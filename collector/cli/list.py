"""`coreward list`."""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Collection, Iterator, Sequence

import msgspec

from collector.cli import render
from collector.cli.choice import filter_arguments, filter_of, json_argument, reading
from collector.cli.routine import routine_line, show_routine
from collector.errors import StoreError, UsageError
from collector.model import Record
from collector.store.filter import Filter
from collector.store.ids import ID_DIGITS
from collector.store.store import Store

_HEAD = ["ID", "TIME", "CAUSE", "SIGNAL", "PROCESS", "PID", "CAPTURED", "SIZE", "REASON"]
_TO_THE_RIGHT = ("PID", "SIZE")
_REPEATED = ("CAUSE", "SIGNAL", "SIZE")  # said by the reason, or by `info`
_SHORTEST_ID = 8
_USUAL = 100  # deaths that are shown if nobody says how many
_PART = 1000  # of a long table that are in memory at a time, and whose columns are as wide
_PROCESS_WIDTH = 20  # on a terminal too narrow for everything
_REASON_WIDTH = 24  # a reason cut shorter says nothing


class ListVerb:
    """Lists the deaths on record, newest first: the last 100, unless --limit or --all says
    otherwise. On a terminal it fits the width; in a pipe no line is cut, and --json gives the full
    records, all of them. Filters must all hold; texts are globs."""

    is_paged = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        filter_arguments(parser)
        parser.add_argument(
            "--signature", metavar="SIGNATURE", help="deaths that are this bug again"
        )
        parser.add_argument("-n", "--limit", type=int, metavar="N", help="at most N deaths")
        parser.add_argument("--all", action="store_true", help="all of them, however many")
        parser.add_argument(
            "--routine",
            action="store_true",
            help="ends that were no crashes instead: by the parent, a stop, a key, a closed pipe",
        )
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.limit is not None and args.limit < 0:
            raise UsageError(f"--limit {args.limit}: must not be negative")
        if args.limit is not None and args.all:
            raise UsageError("list: give either --limit or --all")
        wanted = filter_of(args, datetime.datetime.now(datetime.UTC))
        damage: list[StoreError] = []
        with reading(args.store) as store:
            if args.routine:
                return show_routine(store, wanted, args)
            if args.signature is not None:
                signature = store.signatures.resolve(args.signature)
                wanted = msgspec.structs.replace(wanted, signature=signature)
            found = store.each(wanted, damage.append)
            if args.json:
                render.print_json_array(itertools.islice(found, args.limit))
            else:
                most = None if args.all else _USUAL if args.limit is None else args.limit
                _show(store, itertools.islice(found, most), wanted, most)
        render.print_lost(damage)
        return 0


def _show(store: Store, found: Iterator[Record], wanted: Filter, most: int | None) -> None:
    """The table, in parts if it is long, and what is not in it."""
    screen, shown = render.Screen(), 0
    while records := list(itertools.islice(found, _PART)):
        ids = [record.id for record in records]
        length = short_id_length({*ids, *store.beside(ids)})
        lines = table(records, length, screen)
        print("\n".join(lines if shown == 0 else lines[1:]))
        shown += len(records)
    matching = "" if wanted == Filter() else " that match"
    if shown == 0 and most != 0:
        print(f"no deaths{matching} on record in {render.clean(store.path)}")
    elif shown == most and most == _USUAL:
        count = store.count_matching(wanted, lambda _: None)
        if count > shown:
            print(f"the newest {shown} of {count:,} deaths{matching}; --all shows all, -n N others")
    if most != 0 and (line := routine_line(store, wanted)):
        print(line)


def short_id_length(ids: Collection[str]) -> int:
    """How many digits tell all these ids apart, and at least eight."""
    ordered = sorted(ids)
    length = _SHORTEST_ID
    for one, next_one in itertools.pairwise(ordered):
        while length < ID_DIGITS and one[:length] == next_one[:length]:
            length += 1
    return length


def table(records: Sequence[Record], id_length: int, screen: render.Screen) -> list[str]:
    """The lines of the list, heading first, as wide as the screen at most."""
    rows = [_HEAD] + [_row(record, id_length, screen) for record in records]
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


def _row(record: Record, id_length: int, screen: render.Screen) -> list[str]:
    return [
        record.id[:id_length],
        screen.when(record.time),
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
