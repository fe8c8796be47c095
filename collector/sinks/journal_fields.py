"""A death as fields of systemd's journal (systemd.journal-fields(7), SD_MESSAGE_COREDUMP).

Crashes have the message id and the COREDUMP_ fields of systemd-coredump(8), so that coredumpctl(1)
lists them and hands their cores to a debugger. Other deaths have an id of their own: nobody looks
for a core of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from collector.model import Outcome, Record
from collector.sinks.text import category, clean, headline, is_crash, signature, stack_trace

CRASH_ID = "fc2e22bc6ee647b6b90729ab34a250b1"  # SD_MESSAGE_COREDUMP of <systemd/sd-messages.h>
DEATH_ID = "3e3561542f0841d5817ebd9f6b299e26"  # of this project
_CRITICAL, _NOTICE = "2", "5"  # syslog(3)


def fields(record: Record, core: Path | None) -> list[tuple[str, str]]:
    """Name and value of each field; one that is not known is not there. core: where it is."""
    return [(name, clean_lines(value)) for name, value in _all(record, core) if value is not None]


def clean_lines(text: str) -> str:
    """Clean, line by line: a name can neither begin a line nor be obeyed by a terminal."""
    return "\n".join(clean(line) for line in text.split("\n"))


def _all(record: Record, core: Path | None) -> Iterator[tuple[str, str | None]]:
    crash = is_crash(record)
    yield "MESSAGE", _message(record)
    yield "MESSAGE_ID", CRASH_ID if crash else DEATH_ID
    yield "PRIORITY", _CRITICAL if crash else _NOTICE
    yield "SYSLOG_IDENTIFIER", "coreward"
    yield "COREWARD_ID", record.id
    yield "COREWARD_CAUSE", record.cause.value
    yield "COREWARD_OUTCOME", record.outcome.value
    yield "COREWARD_REASON", record.reason
    yield "COREWARD_CATEGORY", category(record)
    yield "COREWARD_SIGNATURE", signature(record)
    if not crash:
        yield "OBJECT_PID", str(record.pid)
        yield "COREWARD_COMM", _line(record.comm)
        yield "COREWARD_EXE", _line(record.exe)
        yield "COREWARD_UNIT", _line(record.unit)
        return
    yield "COREDUMP_PID", str(record.pid)
    yield "COREDUMP_UID", _number(record.uid)
    yield "COREDUMP_GID", _number(record.gid)
    yield "COREDUMP_SIGNAL", _number(record.signal)
    yield "COREDUMP_SIGNAL_NAME", record.signal_name
    yield "COREDUMP_TIMESTAMP", str(round(record.time.timestamp() * 1e6))
    yield "COREDUMP_COMM", _line(record.comm)
    yield "COREDUMP_EXE", _line(record.exe)
    yield "COREDUMP_CMDLINE", _line(" ".join(record.cmdline)) if record.cmdline else None
    yield "COREDUMP_CGROUP", _line(record.cgroup)
    yield "COREDUMP_UNIT", _line(record.unit)
    yield "COREDUMP_FILENAME", None if core is None else str(core)
    yield "COREDUMP_TRUNCATED", "1" if record.outcome is Outcome.TRUNCATED else None


def _message(record: Record) -> str:
    lines = [headline(record)]
    if frames := stack_trace(record):
        lines += ["", f"Stack trace of thread {record.tid}:", *frames]
    return "\n".join(lines)


def _line(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)
