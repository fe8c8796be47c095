"""retain: keeps the store within its limits, by a process of its own that looks now and then.

What it decides from, and what it removes, may be much: none of it is in the agent's memory. Here
is only when it runs. A run that hangs, on a disk that does not answer, is killed.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from collector.linux import children
from collector.policy.types import StoreSettings
from collector.store.limits import Limits, Trimmed

if TYPE_CHECKING:
    from collector.agent.context import Context

log = logging.getLogger(__name__)

NICE = 19
LOOK_S = 1.0  # how often is looked whether a run has ended
_FIRST_S = 30.0  # after the start
_OFTEN_S = 60.0  # between two runs while there are deaths
_SOON_S = 5.0  # and while there are many
_MANY = 500
_SELDOM_S = 3600.0  # for ages, and for what others do
_LONGEST_S = 600.0
_MAX_SAID = 64 << 10  # bytes


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to do, as JSON on its stdin."""

    store: str
    limits: Limits


class Retention:
    """For the main thread alone, but for `note`."""

    def __init__(self, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        self._last = now - _OFTEN_S + _FIRST_S  # when the last run began
        self._deaths = 1  # since then
        self._has_run = False
        self._child: subprocess.Popen[bytes] | None = None

    def note(self) -> None:
        """A record was written: there may be too many now."""
        self._deaths += 1

    @property
    def timeout_ms(self) -> int:
        """When to look again at the latest."""
        if self._child is not None:
            return round(LOOK_S * 1e3)
        return max(0, round((self._due - time.monotonic()) * 1e3)) + 1

    @property
    def _due(self) -> float:
        """When the next run is to begin."""
        if self._deaths >= _MANY:
            return self._last + _SOON_S
        return self._last + (_OFTEN_S if self._deaths else _SELDOM_S)

    def look(self, context: Context) -> None:
        """Begin a run, or see what came of it, if it is time to."""
        now = time.monotonic()
        if self._child is not None:
            if self._child.poll() is not None:
                self._ended(context, self._child)
            elif now >= self._last + _LONGEST_S:
                self.close()
                self._failed(context, f"it took more than {_LONGEST_S:.0f} s")
        elif now >= self._due:
            self._last, self._deaths = now, 0
            self._begin(context)

    def close(self) -> None:
        """A run that is killed leaves the store whole."""
        child, self._child = self._child, None
        if child is not None:
            children.kill(child)
            _output(child).close()

    def _begin(self, context: Context) -> None:
        try:
            limits = limits_of(context.policy.policy.store, context.store.path)
            if limits == Limits() and self._has_run:
                return
            self._has_run = True  # once at least: the index may be of an older version
            order = Order(store=str(context.store.path), limits=limits)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            with open(writing, "wb") as stream:  # it fits into the pipe
                stream.write(msgspec.json.encode(order))
            with open(reading, "rb") as stream:
                self._child = children.start(
                    [sys.executable, "-m", "collector.agent.retainer"],
                    NICE,
                    stdin=stream,
                    stdout=subprocess.PIPE,
                )
        except OSError as error:
            self._failed(context, str(error))

    def _ended(self, context: Context, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        with _output(child) as stream:
            said = stream.read(_MAX_SAID)
        try:
            answer = msgspec.json.decode(said, type=Trimmed | str)
        except msgspec.MsgspecError:
            answer = f"it ended with status {child.returncode}"
        if isinstance(answer, str):
            self._failed(context, answer)
            return
        metrics = context.metrics
        for counter, removed in (
            (metrics.cores_removed, answer.cores),
            (metrics.records_removed, answer.records),
        ):
            for limit, count in removed.items():
                counter.labels(limit).inc(count)
        metrics.removed_bytes.inc(answer.bytes)
        if answer.cores or answer.records:
            log.info("store: %s", _in_words(answer))
        if answer.unmet:
            log.warning("store: all that may go is gone, and it is beyond %s", answer.unmet)

    def _failed(self, context: Context, why: str) -> None:
        context.metrics.errors.labels("retention").inc()
        log.error("store: nothing more is removed: %s; it is tried again", why)


def limits_of(settings: StoreSettings, path: Path) -> Limits:
    """Policy's limits in bytes: shares are of the file system that the store at `path` is on."""
    space = os.statvfs(path)
    whole = space.f_blocks * space.f_frsize

    def size(given: int | float | None) -> int | None:
        return int(given * whole) if isinstance(given, float) else given

    return Limits(
        max_size=size(settings.max_size),
        max_records=settings.max_records,
        max_age=settings.max_age,
        max_core_age=settings.max_core_age,
        keep_free=size(settings.keep_free),
        service_max_size=settings.service_max_size,
        service_max_records=settings.service_max_records,
    )


def _output(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None  # it was asked for
    return child.stdout


def _in_words(done: Trimmed) -> str:
    parts = [
        f"{count} {what} ({limit})"
        for what, removed in (("cores", done.cores), ("records", done.records))
        for limit, count in removed.items()
    ]
    return f"{', '.join(parts)} removed, {done.bytes >> 20} MiB"
