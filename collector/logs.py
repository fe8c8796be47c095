"""The log on standard error: one line for one event, whatever names are in it.

Names of processes, paths and messages from outside can hold anything. What a terminal would obey,
or hide, is spelled out, so that nobody can write a line of his own into the log. The lines of a
traceback are indented for the same reason.
"""

from __future__ import annotations

import datetime
import logging
from types import TracebackType

from collector.store.encoding import json_line, spelled

_FORMAT = "%(levelname)s %(name)s: %(message)s"


def set_up(level: int, *, json: bool = False) -> None:
    """Log to standard error, from this level on. Once in a process. json: an object for a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if json else CleanFormatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


class CleanFormatter(logging.Formatter):
    """Spells out hostile characters in all that is logged."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return spelled(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """One JSON object for one event: `time`, `level`, `logger`, `message`; `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": utc(datetime.datetime.fromtimestamp(record.created, datetime.UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json_line(event).rstrip("\n")


def utc(time: datetime.datetime) -> str:
    """As RFC 3339 has it, to the millisecond."""
    return time.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _indented(text: str) -> str:
    return "\n".join("  " + spelled(line) for line in text.split("\n"))
