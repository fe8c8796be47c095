"""Events as values for JSON: what `coreward trace --json` prints, one object a line."""

from __future__ import annotations

from typing import Any

import msgspec

from collector.signals import signal_name
from collector.trace.layout import Call, CallEvent, Event, SentEvent, SignalEvent
from collector.trace.notation import Notation, call_name


def json_event(event: Event, notation: Notation) -> dict[str, Any]:
    """All that is known of the event; a call also with its name and its text in strace's notation.

    Bytes are texts in which each byte is the character of its number (ISO 8859-1).
    """
    found: dict[str, Any] = msgspec.to_builtins(event, builtin_types=(bytes,))
    lines = notation.lines(event)
    match event:
        case CallEvent():
            found["call"] = json_call(event.call) | {"name": call_name(event.call)}
            found["text"] = lines[-1]
        case SignalEvent() | SentEvent():
            found["name"] = signal_name(event.signal)
            found["info"] = _characters(event.info)
    return {name: _plain(value) for name, value in found.items()}


def json_call(call: Call) -> dict[str, Any]:
    """All that is known of a call."""
    found: dict[str, Any] = msgspec.to_builtins(call, builtin_types=(bytes,))
    found["texts"] = {
        str(argument): {"data": _characters(text.data), "cut": text.cut, "late": text.late}
        for argument, text in call.texts.items()
    }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return _characters(value) if isinstance(value, bytes) else value


def _characters(data: bytes | None) -> str | None:
    return None if data is None else data.decode("latin-1")
