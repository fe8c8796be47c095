"""`coreward export --bundle`: the archive goes to a file, or down a pipe."""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from collector.cli.choice import reading
from collector.cli.cores import core_of, warn_incomplete
from collector.cli.export_output import output, refuse_terminal
from collector.cli.progress import progress_of
from collector.cli.render import clean

if TYPE_CHECKING:
    from collector.bundle.write import Bundle

_MOST_FILES = 65536  # descriptors; each is a file of the bundle


def export_bundle(args: argparse.Namespace) -> int:
    """Write it, and say on stderr what it lacks."""
    from collector.bundle.write import Bundle  # noqa: PLC0415 (only this form needs it)

    refuse_terminal(args.output)
    with reading(args.store) as store:
        record = store.get(args.id)
        core = core_of(store, record)
        bundle = Bundle(record, store.place(record), core, args.root, _allow_files())
    with bundle:
        with output(args.output, force=args.force) as fd:
            _write(bundle, fd)
        for line in _missing(bundle):
            print(f"coreward: {line}", file=sys.stderr)
    warn_incomplete(record)
    return 0


def _write(bundle: Bundle, fd: int) -> None:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count

    with open(fd, "wb", closefd=False) as out, progress_of(lambda: done, bundle.size):
        bundle.write(out, tell)


def _missing(bundle: Bundle) -> Iterator[str]:
    modules = bundle.manifest.modules
    if not modules:
        yield "no module is in the bundle: the core does not say what was mapped"
    for module in modules:
        if module.missing is not None:
            yield clean(f"not in the bundle: {module.path}: {module.missing}")


def _allow_files() -> int:
    """How many files may be open at a time, as many as we may allow ourselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft
