"""`coreward core`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from collector.cli import copying
from collector.cli.choice import id_argument, reading
from collector.cli.cores import core_of, dying_by_exception, samples_of, warn_incomplete
from collector.cli.progress import progress
from collector.cli.render import clean
from collector.elfcore.sink import SparseWriter, StreamWriter
from collector.errors import StoreError
from collector.watch.flight import write_sample

_STDOUT = "-"


class CoreVerb:
    """Writes the ELF core of a death: plain, decompressed where it must be, for any debugger. A
    file gets the core's holes; it appears when it is whole, or not at all."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        parser.add_argument(
            "-o", "--output", default=_STDOUT, metavar="FILE", help="`-` is stdout (default)"
        )
        parser.add_argument(
            "--sample",
            type=int,
            metavar="N",
            help="instead, a core of the threads as they were in sample N of the minutes before "
            "the death: 1, 2, … or, from the last one backwards, -1, -2, …",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="replace FILE if it exists; a pipe or link of others is written through",
        )

    def run(self, args: argparse.Namespace) -> int:
        if args.sample is not None:
            return _sample(args)
        with reading(args.store) as store:
            record = store.get(args.id)
            core = core_of(store, record)
        if args.output == _STDOUT:
            copying.refuse_terminal(sys.stdout.fileno())
            _to_stdout(core)
        else:
            output = Path(args.output)
            with (
                dying_by_exception(),
                copying.new_file(output, replace=args.force, others=args.force) as fd,
                progress(fd, record.core_memory or record.core_size or 0),
            ):
                copying.copy_core(core, fd)
        warn_incomplete(record)
        return 0


def _sample(args: argparse.Namespace) -> int:
    with reading(args.store) as store:
        record = store.get(args.id)
        flight = samples_of(store, record)
    number = flight.number(args.sample)
    if args.output == _STDOUT:
        copying.refuse_terminal(sys.stdout.fileno())
        written = write_sample(flight, number, record.id, StreamWriter(sys.stdout.fileno()))
    else:
        with (
            dying_by_exception(),
            copying.new_file(Path(args.output), replace=args.force, others=args.force) as fd,
        ):
            written = write_sample(flight, number, record.id, SparseWriter(fd))
    if written.left_out:
        names = ", ".join(sorted(set(written.left_out)))
        count = len(written.left_out)
        print(
            f"coreward: without {count} threads whose registers are not known: {clean(names)}",
            file=sys.stderr,
        )
    return 0


def _to_stdout(core: Path) -> None:
    try:
        copying.copy_core(core, sys.stdout.fileno())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"stdout: cannot be written: {error.strerror}") from error
