"""What a dumper wants: the REGISTER message as a typed value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from collector.dumpers.protocol import GENERIC, MAX_PRIORITY, VERSION, BadMessage, Message
from collector.model import Cause
from collector.policy.types import Match
from collector.policy.units import parse_signal

MAX_EVENTS = 64  # processes that one dumper may have at a time
USUAL_EVENTS = 4
_MAX_VALUES = 32  # of one condition
_MAX_GLOB = 1024  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}")
_KNOWN = frozenset(("version", "name", "priority", "bid", "pin", "events"))

T = TypeVar("T")


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Which processes a dumper is asked about, and how."""

    name: str
    match: Match = Match()
    priority: int | None = None  # of every bid; None: it is asked each time
    pin: bool = False  # pinned memory will do: the process itself need not wait
    events: int = USUAL_EVENTS  # it has so many processes at a time at most


def registration(message: Message) -> Registration:
    """The value of a REGISTER message. BadMessage names the field that is wrong."""
    if message.verb != "REGISTER":
        raise BadMessage(f"{message.verb} before REGISTER")
    if message.number("version", 0, 1 << 16) != VERSION:
        raise BadMessage(f"version {message.get('version')}: this agent speaks version {VERSION}")
    for key, _ in message.fields:
        if key not in _KNOWN and key.removeprefix("match.") not in _CONDITIONS:
            raise BadMessage(f"REGISTER: there is no field {key[:64]!r}")
    name = message.get("name") or ""
    if not _NAME.fullmatch(name):
        raise BadMessage("REGISTER: name: expected up to 64 letters, digits and any of _.:@-")
    asked = message.flag("bid")
    if asked == (message.get("priority") is not None):
        raise BadMessage("REGISTER: give either bid=yes or priority=N")
    priority = None if asked else message.number("priority", GENERIC, MAX_PRIORITY)
    events = USUAL_EVENTS
    if message.get("events") is not None:
        events = message.number("events", 1, MAX_EVENTS)
    return Registration(
        name=name,
        match=_match(message),
        priority=priority,
        pin=message.flag("pin"),
        events=events,
    )


def _match(message: Message) -> Match:
    given: dict[str, Any] = {}
    for name, parse in _CONDITIONS.items():
        texts = message.all(f"match.{name}")
        if not texts:
            continue
        if len(texts) > _MAX_VALUES:
            raise BadMessage(f"REGISTER: match.{name}: more than {_MAX_VALUES} of them")
        try:
            given[name] = tuple(parse(text) for text in texts)
        except ValueError as error:
            raise BadMessage(f"REGISTER: match.{name}: {error}") from None
    if "container" in given:
        given["container"] = given["container"][-1]
    return Match(**given)


def _glob(text: str) -> str:
    if not 0 < len(text) <= _MAX_GLOB:
        raise ValueError(f"expected a glob of 1 to {_MAX_GLOB} characters")
    return text


def _uid(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= (1 << 32) - 1:
        raise ValueError(f"expected a uid, not {text[:32]!r}")
    return int(text)


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"expected yes or no, not {text[:32]!r}")
    return text == "yes"


def _cause(text: str) -> Cause:
    """Of the deaths that the kernel hands over."""
    known = {str(cause): cause for cause in (Cause.SIGNAL, Cause.KILLED)}
    if text not in known:
        raise ValueError(f"expected one of {', '.join(known)}, not {text[:32]!r}")
    return known[text]


_CONDITIONS: dict[str, Callable[[str], object]] = {
    "exe": _glob,
    "comm": _glob,
    "cgroup": _glob,
    "unit": _glob,
    "uid": _uid,
    "signal": parse_signal,
    "cause": _cause,
    "container": _yes_or_no,
}
