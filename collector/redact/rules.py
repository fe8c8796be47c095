"""The rules of a policy as regular expressions, and what they find in bytes. Imports RE2.

The policy is trusted, what it is held against is not. RE2 needs time linear in the bytes for one
match, whatever the expression; but many short matches that each look far ahead may still take long,
so all looking together has a budget. Who finds it used up must redact the rest unseen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import re2

from collector.redact.types import ENVIRONMENT, Redact
from collector.redact.words import assignment_regex

LEAST_SECRET = 6  # bytes of a value that is looked for wherever it may be
_PIECE = 1024  # bytes of a value that are looked for together
_MOST_SECRETS = 64 << 10  # bytes of all values
_AT_ONCE = 2.0  # seconds for one piece of memory; more are a piece that is made to take long
_ENGINE = 64 << 20  # bytes of memory that RE2 may take for one expression


class OutOfTime(Exception):
    """It takes too long: nothing is known of these bytes."""


class Hit(NamedTuple):
    """Bytes [start, end) that are to be redacted, and by which rule."""

    rule: str
    start: int
    end: int


class Rules:
    """Not thread-safe: one thread looks at a time."""

    def __init__(
        self, redact: Redact, secrets: Mapping[str, Sequence[bytes]] | None = None
    ) -> None:
        """secrets: by the rule that found them, values which are redacted wherever they are."""
        self.left = redact.time  # seconds
        self._rules: list[tuple[str, Any]] = []
        self.unwatched = 0  # values that are too many to be looked for
        if redact.environment:
            self._rules.append((ENVIRONMENT, compiled(assignment_regex(redact.environment))))
        # apart from that: a name that it takes in may have one of the values
        for name, values in (secrets or {}).items():
            if pieces := self._pieces(values):
                self._rules.append((name, compiled(b"|".join(map(re2.escape, pieces)))))
        self._rules += [(p.name, compiled(p.regex.encode())) for p in redact.patterns]
        self._any = _any_of([regex for _, regex in self._rules])

    def _pieces(self, values: Iterable[bytes]) -> list[bytes]:
        room = _MOST_SECRETS
        found: dict[bytes, None] = {}
        for value in sorted(set(values), key=len, reverse=True):
            if len(value) < LEAST_SECRET:
                continue
            room -= len(value)
            if room < 0:
                self.unwatched += 1
                continue
            parts = (value[at : at + _PIECE] for at in range(0, len(value), _PIECE))
            found.update((part, None) for part in parts if len(part) >= LEAST_SECRET)
        return list(found)

    def hits(self, data: bytes) -> Iterator[Hit]:
        """All that the rules find; those of one rule do not overlap. Raises OutOfTime."""
        if not self._rules:
            return
        began = time.thread_time()
        try:
            if self.left <= 0:
                raise OutOfTime
            most = min(self.left, _AT_ONCE)
            if self._any is not None and self._any.search(data) is None:
                return
            for name, regex in self._rules:
                group = 1 if regex.groups else 0
                for match in regex.finditer(data):
                    start, end = match.span(group)
                    if start < 0:  # the group took no part: what matched is redacted
                        start, end = match.span()
                    if start < end:
                        yield Hit(name, start, end)
                    if time.thread_time() - began > most:
                        raise OutOfTime
        finally:
            self.left -= time.thread_time() - began

    def hidden(self, text: str, mark: str, counts: dict[str, int]) -> str:
        """A text with a mark in place of each hit, which is counted. Raises OutOfTime."""
        data = text.encode("utf-8", "surrogateescape")
        parts, at = [], 0
        for hit in sorted(self.hits(data), key=lambda hit: (hit.start, -hit.end)):
            if hit.start >= at:
                counts[hit.rule] = counts.get(hit.rule, 0) + 1
                parts += [data[at : hit.start], mark.encode()]
            at = max(at, hit.end)
        parts.append(data[at:])
        return b"".join(parts).decode("utf-8", "surrogateescape")


def compiled(regex: bytes) -> Any:
    """An expression over bytes, whatever they mean. Raises ValueError with what is wrong."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = _ENGINE
    try:
        return re2.compile(regex, options)
    except re2.error as error:
        why = error.args[0] if error.args else "not an expression"
        raise ValueError(why.decode() if isinstance(why, bytes) else str(why)) from None


def _any_of(regexes: Sequence[Any]) -> Any:
    """What finds something wherever one of several does; None: they do not go together."""
    if len(regexes) < 2:
        return None
    try:
        return compiled(b"|".join(b"(?:%s)" % regex.pattern for regex in regexes))
    except ValueError:  # two groups of one name
        return None
