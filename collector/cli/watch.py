"""`coreward watch`."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator

import msgspec

from collector.cli import render
from collector.cli.choice import filter_arguments, filter_of, json_argument, reading
from collector.errors import StoreError, UsageError
from collector.model import Record
from collector.store.encoding import json_line
from collector.store.feed import Feed
from collector.store.filter import Filter
from collector.store.store import Store

_LOOK_S = 0.5


class WatchVerb:
    """Prints each death as it is put on record, when all of it is known, until Ctrl-C: one line
    each, with --json its whole record in one line. --since begins with those that were recorded
    from then on. Filters must all hold; texts are globs."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        filter_arguments(parser)
        parser.add_argument("-n", "--limit", type=int, metavar="N", help="end after N deaths")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.limit is not None and args.limit < 1:
            raise UsageError(f"--limit {args.limit}: must be at least 1")
        wanted = filter_of(args, datetime.datetime.now(datetime.UTC))
        with reading(args.store) as store:
            for number, record in enumerate(_deaths(store, wanted), 1):
                line = json_line(record) if args.json else f"{line_of(record)}\n"
                sys.stdout.write(line)
                sys.stdout.flush()
                if number == args.limit:
                    break
        return 0


def _deaths(store: Store, wanted: Filter) -> Iterator[Record]:
    """Those from `since` on, and then each that comes."""
    feed = Feed(store)
    if wanted.since is not None:
        closed = msgspec.structs.replace(wanted, closed=True)
        before = sorted(store.each(closed, _lost), key=lambda record: (record.time, record.id))
        feed.pass_over(record.id for record in before)
        yield from before
    while True:
        for record in feed.new(_lost):
            if wanted.matches(record):
                yield record
        time.sleep(_LOOK_S)


def _lost(error: StoreError) -> None:
    render.print_lost([error])


def line_of(record: Record) -> str:
    """Time, id, process and reason."""
    when = render.local_time(record.time)
    what = render.clean(record.reason or "")
    return f"{when} {record.id} pid {record.pid} {render.process(record)}: {what}"
