"""How far a long copy is, on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

_LONG = 256 << 20  # bytes from which progress is shown
_EVERY_S = 0.2


@contextlib.contextmanager
def progress(fd: int, total: int) -> Iterator[None]:
    """Show on a terminal how far a copy of `total` bytes to `fd` is, by its blocks on disk."""
    with progress_of(lambda: os.fstat(fd).st_blocks * 512, total):
        yield


@contextlib.contextmanager
def progress_of(done_bytes: Callable[[], int], total: int) -> Iterator[None]:
    """Show on a terminal how far something of `total` bytes is, of which so many are done.

    Nothing for a short one, and nothing in a pipe.
    """
    if total < _LONG or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 (50 ms that only a long copy pays)
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    done = threading.Event()
    bar = Progress(
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

    def watch() -> None:
        task = bar.add_task("core", total=total)
        while not done.wait(_EVERY_S):
            bar.update(task, completed=min(total, done_bytes()))

    watcher = threading.Thread(target=watch, daemon=True)
    with bar:
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
