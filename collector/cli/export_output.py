"""Where `coreward export` puts what is no text: a new file that is whole, or standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from collector.cli import copying
from collector.cli.cores import dying_by_exception
from collector.errors import StoreError

_STDOUT = Path("-")


def refuse_terminal(path: Path | None) -> None:
    """UsageError if it would go to a terminal."""
    if path in (None, _STDOUT):
        copying.refuse_terminal(sys.stdout.fileno())


@contextlib.contextmanager
def output(path: Path | None, *, force: bool) -> Iterator[int]:
    """A descriptor to write to. None, or `-`: standard output; force: replace what is there.

    UsageError, or StoreError if it cannot be written.
    """
    if path is not None and path != _STDOUT:
        with dying_by_exception(), copying.new_file(path, replace=force, others=force) as fd:
            yield fd
        return
    try:
        yield sys.stdout.fileno()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"stdout: cannot be written: {error.strerror}") from error
