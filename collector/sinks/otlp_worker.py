"""`python -m collector.sinks.otlp_worker`: sends records to an OTLP collector by HTTP, in JSON.

Started by the agent only: standard input has ids of records, a descriptor the settings. What the
collector does not take for now is tried again, ever more slowly, for as long as it takes; what it
refuses is lost, and counted. When the agent has closed the pipe, only a little longer.
"""

from __future__ import annotations

import email.message
import http.client
import logging
import os
import random
import select
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

import msgspec

from collector import __version__, logs
from collector.errors import CorewardError
from collector.linux.host import read_host
from collector.model import Record
from collector.policy.types import OtlpSettings
from collector.sinks.otlp import ID_SIZE
from collector.sinks.otlp_document import document
from collector.sinks.tally import Tally
from collector.store.store import Store

log = logging.getLogger("coreward.otlp")

TOGETHER = 64  # records in a request
LAST_S = 20.0  # for all that waits, when the agent has ended
FIRST_S, LONGEST_S = 1.0, 60.0  # between two tries
_MAX_ANSWER = 64 << 10  # bytes that are read of one
_AGAIN = (429, 502, 503, 504)  # statuses by which a collector says: later (OTLP 1.x)


class Refused(Exception):
    """The collector will never take this."""


class Busy(Exception):
    """The collector does not take it now."""

    def __init__(self, why: object, wait_s: float = 0.0) -> None:
        super().__init__(str(why))
        self.wait_s = wait_s  # that it asks for


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn a POST into a GET, or take the headers elsewhere."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


class Client:
    """One collector."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, data: bytes) -> int:
        """How many records it has rejected. Raises Refused or Busy."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"coreward/{__version__}",
            **dict(self._settings.headers),
        }
        request = urllib.request.Request(self._settings.endpoint, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout) as answer:
                return _rejected(answer.read(_MAX_ANSWER))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _AGAIN:
                raise Busy(f"status {error.code}", _asked(error.headers)) from None
            raise Refused(f"status {error.code}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError is one
            raise Busy(getattr(error, "reason", error)) from None


def _asked(headers: email.message.Message) -> float:
    """Seconds of `Retry-After`; 0 if there is none."""
    text = headers.get("Retry-After", "")
    return min(float(text), LONGEST_S) if text.isdecimal() and len(text) < 9 else 0.0


def _rejected(answer: bytes) -> int:
    """Of an ExportLogsServiceResponse; numbers may be strings."""
    try:
        partial = msgspec.json.decode(answer).get("partialSuccess") or {}
        rejected = int(partial.get("rejectedLogRecords") or 0)
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return 0
    return max(rejected, 0)


class Pump:
    """From the pipe to the collector."""

    def __init__(self, ids: int, client: Client, store: Path, tally: Tally) -> None:
        self._ids, self._client, self._store, self._tally = ids, client, store, tally
        self._closed = select.poll()
        self._closed.register(ids, 0)  # only that the other end is closed
        self._until: float | None = None  # of time.monotonic, when it is

    def run(self) -> None:
        """Until the pipe is closed and empty."""
        while batch := self._take():
            records = list(self._records(batch))
            lost = len(batch) - len(records)
            if lost:
                log.warning("%d deaths are not sent: they are not in the store any more", lost)
                self._tally.add(lost=lost)
            if records:
                self._deliver(records)

    def _take(self) -> list[str]:
        """Ids that wait; empty at the end. They are written whole."""
        data = os.read(self._ids, TOGETHER * ID_SIZE)
        batch = data.decode("ascii", "replace").split()
        self._tally.add(taken=len(batch))
        return batch

    def _records(self, ids: list[str]) -> Iterator[Record]:
        try:
            with Store(self._store, create=False, readonly=True) as store:
                for one in ids:
                    try:
                        yield store.get(one)
                    except (CorewardError, OSError, ValueError) as error:
                        log.warning("%s: %s", one, error)
        except (CorewardError, OSError) as error:
            log.error("%s", error)

    def _deliver(self, records: list[Record]) -> None:
        data = msgspec.json.encode(document(records, read_host().name))
        wait, told = FIRST_S, False
        while True:
            try:
                rejected = min(self._client.send(data), len(records))
            except Refused as error:
                log.error("%d deaths are refused: %s", len(records), error)
                self._tally.add(lost=len(records))
                return
            except Busy as error:
                if not told:
                    log.warning("not sent for now: %s", error)
                    told = True
                if not self._rest(max(wait * random.uniform(0.5, 1.0), error.wait_s)):
                    self._tally.add(lost=len(records))
                    return
                wait = min(2 * wait, LONGEST_S)
                continue
            if rejected:
                log.error("%d of %d deaths are rejected", rejected, len(records))
            self._tally.add(sent=len(records) - rejected, lost=rejected)
            return

    def _rest(self, seconds: float) -> bool:
        """Wait before the next try; whether there is to be one. When the agent has ended tries are
        quick, and soon there are none."""
        if not self._closed.poll(seconds * 1e3):
            return True
        now = time.monotonic()
        if self._until is None:
            self._until = now + LAST_S
        if now >= self._until:
            return False
        time.sleep(min(seconds, FIRST_S))
        return True


def main() -> NoReturn:
    settings_fd, tally_fd, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logs.set_up(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, or of a service that stops:
        signal.signal(number, signal.SIG_IGN)  # the agent says when to end, by closing the pipe
    with os.fdopen(settings_fd, "rb") as file:
        settings = msgspec.json.decode(file.read(), type=OtlpSettings)
    Pump(sys.stdin.fileno(), Client(settings), store, Tally(tally_fd)).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
