"""What verbs need of a record's core: its path, a plain copy for a debugger, its warnings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from collector.cli.copying import COMPRESSED, copy_core
from collector.cli.render import clean
from collector.errors import NotFound, StoreError
from collector.model import Outcome, Record
from collector.store.folders import TEMPORARY
from collector.store.store import Store
from collector.watch import kept
from collector.watch.flight import Flight, read
from collector.watch.kept import KeptCalls

_INCOMPLETE = (Outcome.TRUNCATED, Outcome.REDUCED)


def being_worked_on(record: Record) -> str | None:
    """Why something of a death of this moment may be missing; None: its record is closed."""
    return None if record.reason else "the agent is still at work on it; try again in a moment"


def core_of(store: Store, record: Record) -> Path:
    """Where the record's core is. NotFound says why there is none."""
    path = store.core_path(record)
    if path is not None:
        return path
    if record.core is not None:
        raise NotFound(
            f"record {record.id}: its core ({record.core}) is gone from the store"
        ).advised(what_there_is(record))
    why = (
        record.lost.get("core")
        or being_worked_on(record)
        or f"what was captured is `{record.capture.value}`"
    )
    raise NotFound(f"record {record.id} has no core: {clean(why)}").advised(what_there_is(record))


def what_there_is(record: Record) -> str | None:
    """Advice for somebody who wants what is not there; None: it may still come."""
    return f"`coreward info {record.id}` tells what is known" if record.reason else None


def samples_of(store: Store, record: Record) -> Flight:
    """The samples of the minutes before a death. NotFound says why there are none."""
    if record.samples is None:
        why = record.lost.get("samples", "no `watch` rule of the policy named it")
        raise NotFound(f"record {record.id} has no samples: {clean(why)}").advised(
            what_there_is(record)
        )
    return read(store.place(record))


def calls_of(store: Store, record: Record) -> KeptCalls:
    """The last system calls of a death's threads. NotFound says why there are none."""
    if record.calls is None:
        why = record.lost.get("calls", "no `trace` rule of the policy named it")
        raise NotFound(f"record {record.id} has no system calls: {clean(why)}").advised(
            what_there_is(record)
        )
    return kept.read(store.place(record))


def warn_incomplete(record: Record) -> None:
    """Say on stderr that a core does not hold everything."""
    if record.outcome in _INCOMPLETE:
        why = record.lost.get("core") or record.lost.get("memory")
        reason = f": {clean(why)}" if why else ""
        print(f"coreward: this core is {record.outcome.value}{reason}", file=sys.stderr)


@contextlib.contextmanager
def plain_core(core: Path) -> Iterator[Path]:
    """A path of the plain ELF that lives as long as the block: the core itself, or a compressed one
    mounted, of which no more is decompressed than is read; or a decompressed copy where no file
    system can be mounted.

    Of a process that is killed the copy stays, until the agent's next start removes it. It lies
    beside the core, or in $TMPDIR where that cannot be written. StoreError if there is no room.
    """
    if core.suffix != COMPRESSED:
        yield core
        return
    from collector.mount.private import NotMounted, mounted  # noqa: PLC0415 (only for these)

    with dying_by_exception(), contextlib.ExitStack() as until:
        try:
            plain = until.enter_context(mounted(core))
        except NotMounted:
            plain = until.enter_context(_decompressed(core))
        yield plain


@contextlib.contextmanager
def _decompressed(core: Path) -> Iterator[Path]:
    fd, name = _temporary(core)
    path = Path(name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # in use: Store.clean_partial leaves it alone
        try:
            copy_core(core, fd)
        except OSError as error:
            raise StoreError(
                f"{path}: no decompressed copy can be written: {error.strerror}; "
                "$TMPDIR may name a place with more room"
            ) from error
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _temporary(core: Path) -> tuple[int, str]:
    chosen = os.environ.get("TMPDIR")
    for place in (chosen or core.parent, core.parent):
        with contextlib.suppress(OSError):
            return tempfile.mkstemp(prefix=f"{TEMPORARY}core-", dir=place)
    try:
        return tempfile.mkstemp(prefix=f"{TEMPORARY}core-")
    except OSError as error:
        raise StoreError(f"no place for a decompressed core: {error}") from error


@contextlib.contextmanager
def dying_by_exception() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP end the program by SystemExit, so that clean-up happens."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
