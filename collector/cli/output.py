"""Standard output: what terminal it is, and that it cannot be written any more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

_DIGITS = 6  # of a width that somebody may mean
_behind_a_pager: Terminal | None = None


class Terminal(NamedTuple):
    """What people look at."""

    width: int  # columns
    colours: bool
    dumb: bool  # it can do nothing but print


def terminal() -> Terminal | None:
    """The one that the output ends at, also through our pager; None: a pipe or a file.

    `NO_COLOR` (no-color.org) is honoured.
    """
    if _behind_a_pager is not None or not sys.stdout.isatty():
        return _behind_a_pager
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return Terminal(_columns(), colours=not dumb and not os.environ.get("NO_COLOR"), dumb=dumb)


@contextlib.contextmanager
def through_a_pager(shown: Terminal) -> Iterator[None]:
    """Within, standard output is a pipe to a pager on this terminal."""
    global _behind_a_pager
    _behind_a_pager = shown
    try:
        yield
    finally:
        _behind_a_pager = None


def _columns() -> int:
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and len(told) <= _DIGITS and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def open_closed() -> None:
    """Have those of the three standard descriptors that were closed lead nowhere.

    Else the next file that is opened, of the store say, would be one, and get what is printed.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (for good)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def say_no_more() -> None:
    """What is printed from now on, or waits to be, goes nowhere, and is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
