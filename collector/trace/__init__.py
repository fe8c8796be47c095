"""The library for programs that trace processes without stopping them: see docs/trace.md."""

from __future__ import annotations

from collector.trace.filter import EVERYTHING, parse
from collector.trace.layout import (
    LIVE,
    RECORD,
    Call,
    CallEvent,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    KeptEvent,
    Present,
    SentEvent,
    SignalEvent,
    Text,
    WaitEvent,
)
from collector.trace.notation import Notation, call_name
from collector.trace.symbols import Symbols
from collector.trace.tracer import Losses, Rule, Tracer

__all__ = [
    "EVERYTHING",
    "LIVE",
    "RECORD",
    "Call",
    "CallEvent",
    "Event",
    "ExecEvent",
    "ExitEvent",
    "ForkEvent",
    "KeptEvent",
    "Losses",
    "Notation",
    "Present",
    "Rule",
    "SentEvent",
    "SignalEvent",
    "Symbols",
    "Text",
    "Tracer",
    "WaitEvent",
    "call_name",
    "parse",
]
