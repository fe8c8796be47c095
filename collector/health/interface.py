"""The socket of the health interface, and what can be asked there. Knows nothing of the agent."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import msgspec

from collector.errors import HoldError
from collector.export.server import BACKLOG, LONGEST_S, Reply, Request, Server
from collector.health.log import MOST_TEXT, EventLog
from collector.health.types import Problem, State
from collector.store.encoding import json_line

MOST = 256  # events in one answer
_JSON = "application/json"


class HealthInterface:
    """Serves from its making on, until `close`."""

    def __init__(self, path: Path, group: int | None, epoch: str, state: Callable[[], State]):
        """path: of the socket, for root, and for members of `group`. state: of the collector.

        Raises HoldError if the socket cannot be made.
        """
        self._path, self._state = path, state
        self.log = EventLog(epoch, self._wake)
        self._server: Server | None = None
        self._server = Server(_listen(path, group), self._respond, "health")

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _wake(self) -> None:
        if self._server is not None:
            self._server.wake()

    def _respond(self, request: Request) -> Reply | None:
        path, _, query = request.target.partition("?")
        try:
            given = dict(urllib.parse.parse_qsl(query, strict_parsing=bool(query)))
            if path == "/v1/events":
                return self._events(given, request.waited)
            if path == "/v1/last":
                return self._last(given)
            if given:
                raise ValueError(f"{path} takes no parameters")
        except ValueError as error:
            return _reply(Problem(error=str(error)), "400 Bad Request")
        if path == "/v1/state":
            return _reply(self._state())
        if path == "/v1/loops":
            return _reply(self.log.loops(datetime.datetime.now(datetime.UTC)))
        known = (
            "/v1/state, /v1/loops, /v1/last?unit=UNIT, /v1/events?after=CURSOR&limit=N&wait=SECONDS"
        )
        return _reply(Problem(error=f"there are {known}"), "404 Not Found")

    def _last(self, given: dict[str, str]) -> Reply:
        if given.keys() != {"unit"}:
            raise ValueError("the parameter unit is wanted, and no other: /v1/last?unit=UNIT")
        if len(given["unit"]) > MOST_TEXT:
            raise ValueError(f"unit: at most {MOST_TEXT} characters are wanted")
        return _reply(self.log.last(given["unit"]))

    def _events(self, given: dict[str, str], waited: float) -> Reply | None:
        """None while there is none, and somebody waits for one."""
        if unknown := given.keys() - {"after", "limit", "wait"}:
            raise ValueError(f"unknown parameter {min(unknown)}: there are after, limit, wait")
        limit = _number("limit", given.get("limit", str(MOST)), 1, MOST)
        wait = _number("wait", given.get("wait", "0"), 0, int(LONGEST_S))
        found = self.log.after(given.get("after"), limit)
        if not found.events and not found.missed and waited < wait:
            return None
        return _reply(found)


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise ValueError(f"{name}: a number from {least} to {most} is wanted")
    return int(text)


def _reply(document: msgspec.Struct, status: str = "200 OK") -> Reply:
    return Reply(_JSON, json_line(document).encode(), status)


def _listen(path: Path, group: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path) and not path.is_socket():  # as a former agent left it
            raise HoldError(f"{path}: is no socket; give another path in `health.socket`")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect yet: it does not listen
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HoldError(f"{path}: no socket for health: {error.strerror or error}") from error
    except HoldError:
        listener.close()
        raise
    return listener
