"""The log on standard error: one line for one event, whatever names are in it.

Names of processes, paths and messages from outside can hold anything. What a terminal would obey,
or hide, is spelled out, so that nobody can write a line of his own into the log. The lines of a
traceback are indented for the same reason.
"""

from __future__ import annotations

import logging
from types import TracebackType

from collector.store.encoding import HOSTILE, spell

_FORMAT = "%(levelname)s %(name)s: %(message)s"


def set_up(level: int) -> None:
    """Log to standard error, from this level on. Once in a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(CleanFormatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


class CleanFormatter(logging.Formatter):
    """Spells out hostile characters in all that is logged."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return HOSTILE.sub(spell, super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join("  " + HOSTILE.sub(spell, line) for line in text.split("\n"))
