"""The agent's side of an OTLP collector: a pipe with the ids of records, and who reads it.

A worker of its own reads the records from the store and sends them; the agent never waits for it,
nor for the network. What the pipe has room for may wait: some 3,800 deaths. Beyond that, and when a
worker was killed, the loss is counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from collector.linux import children
from collector.policy.types import OtlpSettings
from collector.sinks.tally import Tally

log = logging.getLogger(__name__)

ID_SIZE = 17  # bytes: 16 hex digits and a newline
_NICE = 10
_RESTART_S = 10.0


class Otlp:
    """Any thread may call its methods."""

    def __init__(self, settings: OtlpSettings, store: Path) -> None:
        self._settings, self._store = settings, store
        self._lock = threading.Lock()
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        self._tally_fd = Tally.new()
        self._tally = Tally(self._tally_fd)
        self._lost = 0  # for which there was no room
        self._worker: subprocess.Popen[bytes] | None = None
        self._started = float("-inf")
        self._final = 0, 0  # when it is closed
        self._open = True
        self._tend()

    @property
    def sent(self) -> int:
        return self._tally.counts[1] if self._open else self._final[0]

    @property
    def lost(self) -> int:
        return self._lost + self._tally.counts[2] if self._open else self._final[1]

    def put(self, record: str) -> None:
        """Have the record with this id sent."""
        with self._lock:
            if not self._open:
                return
            self._tend()
            try:
                os.write(self._write, f"{record}\n".encode())
            except BlockingIOError:
                self._lost += 1

    def tend(self) -> None:
        """Start a worker again that has ended."""
        with self._lock:
            if self._open:
                self._tend()

    def close(self, patience: float) -> None:
        """Let what waits be sent, for so many seconds; the rest is lost."""
        with self._lock:
            if not self._open:
                return
            os.close(self._write)
            if self._worker is not None:
                if not children.has_ended(self._worker.pid, patience):
                    log.warning("otlp: the collector took too long")
                children.kill(self._worker)
            waited = self._left()
            taken, sent, lost = self._tally.counts
            self._final = sent, self._lost + lost + (taken - sent - lost) + waited
            if missing := self._final[1]:
                log.warning("otlp: %d deaths were not sent; they are in the store", missing)
            self._open = False
            self._tally.close()
            os.close(self._read)
            os.close(self._tally_fd)

    # ---- inside, with the lock held

    def _left(self) -> int:
        """Ids that nobody has read from the pipe."""
        os.set_blocking(self._read, False)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 1 << 16):
                size += len(data)
        return size // ID_SIZE

    def _tend(self) -> None:
        if self._worker is not None:
            if self._worker.poll() is None:
                return
            taken, sent, lost = self._tally.counts
            if in_hand := taken - sent - lost:
                self._tally.add(lost=in_hand)
            log.warning("otlp: the worker has ended with status %d", self._worker.returncode)
            self._worker = None
        now = time.monotonic()
        if now < self._started + _RESTART_S:
            return
        self._started = now
        try:
            self._worker = self._start()
        except OSError as error:
            log.error("otlp: no worker can be started: %s", error)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = os.memfd_create("coreward-otlp", os.MFD_CLOEXEC)
        try:
            os.write(settings, msgspec.json.encode(self._settings))
            os.lseek(settings, 0, os.SEEK_SET)
            return children.start(
                [
                    *(sys.executable, "-P", "-s", "-m", "collector.sinks.otlp_worker"),
                    *(str(settings), str(self._tally_fd), str(self._store)),
                ],
                _NICE,
                stdin=self._read,
                stdout=subprocess.DEVNULL,
                pass_fds=(settings, self._tally_fd),
            )
        finally:
            os.close(settings)
