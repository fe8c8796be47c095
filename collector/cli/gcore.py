"""`coreward gcore`, and the command `gcore` itself: gdb's script of that name, without gdb."""

from __future__ import annotations

import argparse
import getopt
import sys
from collections.abc import Sequence
from pathlib import Path

from collector.cli import copying
from collector.cli.interrupts import interruptible
from collector.cli.probing import live_probe
from collector.cli.redaction import RedactionOf, redaction, redaction_arguments
from collector.cli.render import clean
from collector.errors import CorewardError
from collector.model import SnapshotMode
from collector.policy.types import MemoryChoice
from collector.snapshot.take import Found, SnapshotRequest, take
from collector.snapshot.write import WHOLE_FILTER, Core, CoreContents, write_plain

_MOST_DIGITS = 10  # of a pid
_USAGE = "usage:  gcore [-a] [-o prefix] pid1 [pid2...pidN]"


class GcoreVerb:
    """Writes PREFIX.PID for each process, as gdb's gcore does: same arguments, names, messages
    and exit status; the process stands for milliseconds only. Installed under the name `gcore` it
    takes that script's place."""

    passes_on = True  # words after `--`, or of the command `gcore`, arrive as args.passed_on

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-a", action="store_true", help="all mappings, excluded ones as well")
        parser.add_argument("-o", default="core", metavar="PREFIX", help="default: core")
        redaction_arguments(parser)
        parser.add_argument("pids", nargs="*", metavar="PID")

    def run(self, args: argparse.Namespace) -> int:
        everything, prefix, pids = args.a, args.o, args.pids
        try:
            options, more = getopt.getopt(args.passed_on, "ao:", ["config=", "unredacted"])
        except getopt.GetoptError:
            options, more, pids = [], [], []
        pids = [*pids, *more]
        for option, value in options:
            everything = everything or option == "-a"
            prefix = value if option == "-o" else prefix
            args.config = Path(value) if option == "--config" else args.config
            args.unredacted = args.unredacted or option == "--unredacted"
        if not pids:
            print(_USAGE)
            return 2
        return _save(pids, prefix, everything, redaction(args))


def _save(pids: Sequence[str], prefix: str, everything: bool, redaction_of: RedactionOf) -> int:
    """One core after the other, up to the first that fails.

    As gdb's they have no segments without contents: other tools take those for memory that they
    can read.
    """
    memory = MemoryChoice()
    if everything:
        memory = MemoryChoice(dontdump=True, coredump_filter=WHOLE_FILTER)
    for pid in pids:
        path = Path(f"{prefix}.{pid}")
        try:
            if not (pid.isascii() and pid.isdigit() and len(pid) <= _MOST_DIGITS):
                raise CorewardError(f"Illegal process-id: {pid}.")
            redact = redaction_of(int(pid))
            _write(int(pid), path, CoreContents(memory=memory, only_held=True, redact=redact))
        except CorewardError as error:
            print(clean(error), file=sys.stderr)
            print(f"gcore: failed to create {path}")
            return 1
        print(f"Saved corefile {path}", flush=True)
    return 0


def _write(pid: int, path: Path, contents: CoreContents) -> None:
    with (
        interruptible() as check,
        live_probe() as live,
        copying.new_file(path, replace=True, flush=False) as fd,
    ):

        def write(found: Found) -> Core:
            return write_plain(found, contents, fd, check)

        redacts = contents.redact.anything
        request = SnapshotRequest(mode=SnapshotMode.FULL_STOP, unstaged=redacts)
        core = fd if copying.can_be_read(fd) and not redacts else None
        found, _ = take(pid, request, write, live, path.parent, core=core)
    # on standard error, as scripts read the other
    if found.lost is not None:
        print(f"coreward: {clean(str(path))} is truncated: {clean(found.lost)}", file=sys.stderr)
    if found.unseen:
        print(f"coreward: of {clean(str(path))} {clean(found.unseen)}", file=sys.stderr)
