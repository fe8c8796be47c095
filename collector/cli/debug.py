"""`coreward debug`."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

from collector.cli.choice import id_argument, reading
from collector.cli.cores import core_of, plain_core, warn_incomplete
from collector.cli.executable import executable_of
from collector.cli.render import clean
from collector.errors import CorewardError


class DebugVerb:
    """Opens the core of a death in gdb, with the executable that died if it is still there and
    still the same. What follows `--` goes to gdb; gdb's exit status is the status."""

    passes_on = True  # words after `--` arrive as args.passed_on

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        parser.epilog = "example: coreward debug latest -- -batch -ex 'thread apply all bt'"

    def run(self, args: argparse.Namespace) -> int:
        gdb = shutil.which("gdb")
        if gdb is None:
            raise CorewardError(
                "gdb is not installed: it is in the package `gdb` (apt-get install gdb, "
                "dnf install gdb)"
            )
        with reading(args.store) as store:
            record = store.get(args.id)
            core = core_of(store, record)
        warn_incomplete(record)
        with plain_core(core) as plain:
            exe, warning = executable_of(record, plain)
            if warning:
                print(f"coreward: {clean(warning)}", file=sys.stderr)
            command = [gdb, f"--core={plain}", *args.passed_on]
            if exe is not None:
                command[1:1] = [f"--exec={exe}", f"--symbols={exe}"]
            return _run(command)


def _run(command: list[str]) -> int:
    """Run it in the foreground; its exit status as a shell gives it."""
    sys.stdout.flush()
    with _interrupts_are_for_the_child():
        status = subprocess.call(command)
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _interrupts_are_for_the_child() -> Iterator[None]:
    # A handler that does nothing, not SIG_IGN: that one would be inherited through exec.
    previous = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
