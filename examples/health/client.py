#!/usr/bin/env python3
"""A client of Coreward's health interface, for a node agent to take as it is.

    client.py [--socket /run/coreward-health.sock] state | loops | events [--follow]

Prints one JSON object a line. `events --follow` waits for new ones, goes on after a restart of the
agent, and says so if it has missed any. Exit status 1 if nobody answers. Python's standard library
only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

WAIT_S = 30  # that the collector keeps a request open while nothing happens
MOST = 4 << 20  # bytes of an answer


class HealthError(Exception):
    """The collector does not answer, or not with what was asked for."""


class Health:
    """The collector of this host."""

    def __init__(self, path: str, timeout: float = WAIT_S + 15) -> None:
        self._path, self._timeout = path, timeout

    def state(self) -> dict[str, Any]:
        return self._get("/v1/state")

    def loops(self) -> list[dict[str, Any]]:
        """Services in a crash loop."""
        found: list[dict[str, Any]] = self._get("/v1/loops")["services"]
        return found

    def events(self, after: str | None, wait: int = 0) -> dict[str, Any]:
        """`events` after a cursor, the next `cursor`, and whether some were `missed`."""
        query = {"wait": str(wait), **({"after": after} if after else {})}
        return self._get(f"/v1/events?{urllib.parse.urlencode(query)}")

    def follow(self, after: str | None = None) -> Iterator[dict[str, Any]]:
        """Each event as it happens. What was missed is told as an event of its own, and so is a
        collector that is away."""
        away = False
        while True:
            try:
                found = self.events(after, wait=WAIT_S)
            except HealthError as error:
                if not away:
                    yield {"event": "away", "error": str(error)}
                away = True
                time.sleep(1)
                continue
            away = False
            if found["missed"]:
                yield {"event": "missed", "after": after}
            yield from found["events"]
            after = found["cursor"]

    def _get(self, target: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=self._timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self._timeout)
        try:
            connection.sock.connect(self._path)
            connection.request("GET", target)
            answer = connection.getresponse()
            document = json.loads(answer.read(MOST))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HealthError(f"{self._path}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise HealthError(f"{self._path}: {document.get('error', answer.reason)}")
        if document.get("version") != 1:
            raise HealthError(f"{self._path}: speaks version {document.get('version')}, not 1")
        return document


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask Coreward how this host is.")
    parser.add_argument("--socket", default="/run/coreward-health.sock", metavar="PATH")
    parser.add_argument("what", choices=("state", "loops", "events"))
    parser.add_argument("--after", metavar="CURSOR", help="events: only those after this one")
    parser.add_argument("--follow", action="store_true", help="events: wait for new ones")
    args = parser.parse_args()
    health = Health(args.socket)
    try:
        if args.what == "state":
            found: Iterator[dict[str, Any]] = iter([health.state()])
        elif args.what == "loops":
            found = iter(health.loops())
        elif args.follow:
            found = health.follow(args.after)
        else:
            found = iter(health.events(args.after)["events"])
        for one in found:
            print(json.dumps(one), flush=True)
    except HealthError as error:
        print(f"health: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
