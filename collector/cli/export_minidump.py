"""`coreward export --minidump`: the file goes where it is told to, or down a pipe."""

from __future__ import annotations

import argparse
import sys

from collector.cli.choice import reading
from collector.cli.cores import core_of, warn_incomplete
from collector.cli.export_output import output, refuse_terminal


def export_minidump(args: argparse.Namespace) -> int:
    """Write it, and say on stderr what it lacks."""
    from collector.elfcore.reader import CoreFile  # noqa: PLC0415 (only this form needs them)
    from collector.minidump.of_core import Minidump  # noqa: PLC0415

    refuse_terminal(args.output)
    with reading(args.store) as store:
        record = store.get(args.id)
        path = core_of(store, record)
    with CoreFile(path) as core:
        minidump = Minidump(core, record)
        with (
            output(args.output, force=args.force) as fd,
            open(fd, "wb", closefd=False) as out,
        ):
            for part in minidump.parts():
                out.write(part)
    if minidump.left_out:
        print(f"coreward: {minidump.left_out} threads are not in it", file=sys.stderr)
    if minidump.cut:
        print(f"coreward: the stacks of {minidump.cut} threads are cut off", file=sys.stderr)
    warn_incomplete(record)
    return 0
