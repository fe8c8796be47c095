"""What `coreward run --log-format json` says on standard output: an object for a line."""

from __future__ import annotations

from collector.logs import utc
from collector.model import Record
from collector.store.encoding import json_line


def of_death(record: Record) -> str:
    """One finished death, without the newline. Facts that are not known are null."""
    return json_line(
        {
            "event": "death",
            "id": record.id,
            "time": utc(record.time),
            "pid": record.pid,
            "comm": record.comm,
            "exe": record.exe,
            "unit": record.unit,
            "uid": record.uid,
            "cause": record.cause.value,
            "signal": record.signal_name,
            "reason": record.reason,
            "capture": record.capture.value,
            "outcome": record.outcome.value,
            "held_ms": record.held_ms,
            "late": record.late,
        }
    ).rstrip("\n")


def of_start(message: str) -> str:
    """That the agent is ready, or how it is not."""
    return json_line({"event": "ready", "message": message}).rstrip("\n")
