"""`coreward debug`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from collector.cli import debugger
from collector.cli.choice import id_argument, reading
from collector.cli.cores import core_of, plain_core, warn_incomplete
from collector.cli.executable import executable_of
from collector.cli.opened import bundle_of
from collector.cli.render import clean
from collector.errors import UsageError
from collector.model import Record

if TYPE_CHECKING:
    from collector.bundle.unpack import Unpacked


class DebugVerb:
    """Opens the core of a death in gdb, with the executable that died if it is still there and
    still the same. A bundle that another machine has made brings its own executable, libraries and
    debugging information; it is unpacked for as long as the debugger runs. What follows `--` goes
    to the debugger, whose exit status is the status."""

    passes_on = True  # words after `--` arrive as args.passed_on

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser, or_bundle=True)
        parser.add_argument(
            "--debugger",
            choices=debugger.DEBUGGERS,
            default="gdb",
            help="for bundles (default: gdb)",
        )
        parser.epilog = (
            "examples: coreward debug latest -- -batch -ex 'thread apply all bt'; "
            "coreward debug crash.tar.zst"
        )

    def run(self, args: argparse.Namespace) -> int:
        program = debugger.find(args.debugger)  # before much is unpacked
        with bundle_of(args, whole=True) as bundle:
            if bundle is None and args.debugger != "gdb":
                raise UsageError("--debugger: a core of this machine's store is opened in gdb")
            with reading(args.store) as store:
                record = store.get(args.id)
                core = core_of(store, record)
            warn_incomplete(record)
            with plain_core(core) as plain:
                if bundle is None:
                    command = [program, *_of_store(record, plain), *args.passed_on]
                else:
                    command = debugger.of_bundle(args.debugger, bundle, plain, args.passed_on)
                    _warn_missing(bundle)
                return _run(command)


def _of_store(record: Record, core: Path) -> list[str]:
    """What gdb is told of a core, and of the executable on this machine."""
    exe, warning = executable_of(record, core)
    if warning:
        print(f"coreward: {clean(warning)}", file=sys.stderr)
    files = [] if exe is None else [f"--exec={exe}", f"--symbols={exe}"]
    return [*files, f"--core={core}"]


def _warn_missing(bundle: Unpacked) -> None:
    for module in bundle.manifest.modules:
        if module.missing is not None:
            why = f"not in the bundle: {module.path}: {module.missing}"
            print(f"coreward: {clean(why)}", file=sys.stderr)


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
