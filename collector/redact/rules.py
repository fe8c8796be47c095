"""The rules of a policy as regular expressions, and what they find in bytes. Imports RE2.

The policy is trusted, what it is held against is not. RE2 needs time linear in the bytes for one
match, whatever the expression; but many short matches that each look far ahead may still take long,
so all looking together has a budget. Who finds it used up must redact the rest unseen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import re2

from collector.ranges import Range
from collector.redact.types import ENVIRONMENT, REACH, Redact
from collector.redact.words import assignment_regex

LEAST_SECRET = 6  # bytes of a value that is looked for wherever it may be
_PIECE = 1024  # bytes of a value that are looked for together
_MOST_SECRETS = 64 << 10  # bytes of all values
_AT_ONCE = 2.0  # seconds for one piece of memory; more are a piece that is made to take long
_FEW = 32  # values of one rule that are looked for in one pass with all else
_STEP = 16 << 10  # bytes in which more are looked for at a time: these may take seconds for a MiB
# bytes in which all else is looked for at a time: a search cannot be interrupted, and one that is
# made to take long needs 8 s for a MiB
_LONG_STEP = 128 << 10
_ENGINE = 64 << 20  # bytes of memory that RE2 may take for one expression
_SPELLED = re.compile(rb"\\x([89a-f][0-9a-f])")


class OutOfTime(Exception):
    """It takes too long: nothing is known of these bytes."""


class Hit(NamedTuple):
    """Bytes [start, end) that are to be redacted, and by which rule."""

    rule: str
    start: int
    end: int


class _Rule(NamedTuple):
    """An expression, and whether it is looked for in steps: of texts that are as they are."""

    name: str
    regex: Any
    in_steps: bool = False

    @property
    def step(self) -> int:
        return _STEP if self.in_steps else _LONG_STEP

    @property
    def reach(self) -> int:
        """Bytes that a match may have."""
        return _PIECE if self.in_steps else REACH


class Rules:
    """Not thread-safe: one thread looks at a time."""

    def __init__(
        self, redact: Redact, secrets: Mapping[str, Sequence[bytes]] | None = None
    ) -> None:
        """secrets: by the rule that found them, values which are redacted wherever they are."""
        self.left = redact.time  # seconds
        self._rules: list[_Rule] = []
        self.unwatched = 0  # values that are too many to be looked for
        if redact.environment:
            regex = compiled(assignment_regex(redact.environment))
            self._rules.append(_Rule(ENVIRONMENT, regex))
        # apart from that: a name that it takes in may have one of the values
        for name, values in (secrets or {}).items():
            if pieces := self._pieces(values):
                regex = compiled(b"|".join(map(re2.escape, pieces)))
                self._rules.append(_Rule(name, regex, in_steps=len(pieces) > _FEW))
        self._rules += [_Rule(p.name, compiled(p.regex.encode())) for p in redact.patterns]
        self._any = _any_of([rule.regex for rule in self._rules if not rule.in_steps])

    def _pieces(self, values: Iterable[bytes]) -> list[bytes]:
        chosen, left_out = fitting(values, _MOST_SECRETS)
        self.unwatched += left_out
        found: dict[bytes, None] = {}
        for value in reversed(chosen):  # of two that begin alike the longer one is found
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
            nothing = False
            if self._any is not None:
                for so_far in _finds_nothing(self._any, data):
                    nothing = so_far
                    if time.thread_time() - began > most:
                        raise OutOfTime
            for rule in self._rules:
                if nothing and not rule.in_steps:
                    continue
                for span in _spans(rule, data):
                    if span[0] < span[1]:
                        yield Hit(rule.name, *span)
                    if time.thread_time() - began > most:
                        raise OutOfTime
        finally:
            self.left -= time.thread_time() - began

    def hidden(self, text: str, mark: str, counts: dict[str, int]) -> str:
        """A text with a mark in place of each hit, which is counted. Raises OutOfTime.

        In a record bytes that were not UTF-8 are spelled out: where there are any, the text is also
        looked through as it was before.
        """
        found = self._marked(text.encode("utf-8", "surrogateescape"), mark.encode(), counts)
        text = found.decode("utf-8", "surrogateescape")
        if "\\x" not in text:
            return text
        raw = _SPELLED.sub(lambda match: bytes.fromhex(match[1].decode()), found)
        hidden = self._marked(raw, mark.encode(), counts)
        return text if hidden == raw else _spelled(hidden)

    def _marked(self, data: bytes, mark: bytes, counts: dict[str, int]) -> bytes:
        parts, at = [], 0
        for hit in sorted(self.hits(data), key=lambda hit: (hit.start, -hit.end)):
            if hit.start >= at:
                counts[hit.rule] = counts.get(hit.rule, 0) + 1
                parts += [data[at : hit.start], mark]
            at = max(at, hit.end)
        parts.append(data[at:])
        return b"".join(parts)


def _spelled(data: bytes) -> str:
    """As the store's records have it: bytes that are not UTF-8 as \\xNN."""
    return data.decode("utf-8", "backslashreplace")


def _spans(rule: _Rule, data: bytes) -> Iterator[Range]:
    """What is redacted of each match; an empty span after each step, for the clock."""
    group = 1 if rule.regex.groups else 0
    at = 0
    while at < len(data):
        following = at + rule.step
        for match in rule.regex.finditer(data, at, min(following + rule.reach, len(data))):
            if match.start() >= following:
                break
            start, end = match.span(group)
            yield (start, end) if start >= 0 else match.span()  # the group took no part: all of it
            following = max(following, match.end())
        at = following
        yield at, at


def _finds_nothing(regex: Any, data: bytes) -> Iterator[bool]:
    """Whether it finds nothing in what was looked through until then; False ends it."""
    nothing = True
    for at in range(0, len(data), _LONG_STEP):
        nothing = regex.search(data, at, min(at + _LONG_STEP + REACH, len(data))) is None
        yield nothing
        if not nothing:
            return


def fitting(values: Iterable[bytes], room: int) -> tuple[list[bytes], int]:
    """The values that are looked for in other places, the shortest first, as many as have `room`
    bytes together; and how many others there are. One that is huge costs no other its place."""
    found = sorted((v for v in set(values) if len(v) >= LEAST_SECRET), key=lambda v: (len(v), v))
    for number, value in enumerate(found):
        room -= len(value)
        if room < 0:
            return found[:number], len(found) - number
    return found, 0


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
