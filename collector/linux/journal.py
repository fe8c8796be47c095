"""The last lines that a unit wrote to the journal: journalctl(1), in a process left after a moment.

The journal may be large, or on a disk that does not answer, and what is in it is hostile: nobody
waits longer than TIMEOUT_S, and no more of a line is kept than MOST_CHARACTERS.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from typing import Any

import msgspec

from collector.circumstances import LogLine
from collector.linux.programs import ask

TIMEOUT_S = 3.0
MOST_CHARACTERS = 1024  # of a line
_MOST = 4 << 20  # bytes of an answer
_NICE = 19


def is_there(program: str = "journalctl") -> bool:
    return shutil.which(program) is not None


def last_lines(
    unit: str,
    count: int,
    until: datetime.datetime,
    *,
    uid: int | None = None,
    program: str = "journalctl",
    seconds: float = TIMEOUT_S,
) -> list[LogLine]:
    """The last `count` lines of the unit's own processes, the oldest first.

    until: lines after that are not its. uid: only what this user wrote. CorewardError says why
    there are none.
    """
    arguments = [
        *("--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_PID"),
        *(f"--lines={count}", f"--until=@{until.timestamp():.6f}", f"_SYSTEMD_UNIT={unit}"),
    ]
    if uid is not None:
        arguments.append(f"_UID={uid}")
    late = "the journal was not read"
    answer = ask(program, arguments, seconds=seconds, most=_MOST, late=late, nice=_NICE)
    return list(_lines(answer))[-count:]


def _lines(answer: bytes) -> Iterator[LogLine]:
    for line in answer.splitlines():
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
            time = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
            pid = entry.get("_PID")
            yield LogLine(
                time=datetime.datetime.fromtimestamp(time, datetime.UTC),
                pid=int(pid) if isinstance(pid, str) and pid.isdecimal() else None,
                message=_message(entry.get("MESSAGE"))[:MOST_CHARACTERS],
            )
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, OverflowError, OSError):
            continue  # cut off, or no entry


def _message(value: object) -> str:
    """journalctl gives what is not UTF-8, or has controls in it, as numbers of bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(byte, int) for byte in value):
        return bytes(byte & 0xFF for byte in value).decode("utf-8", "replace")
    return ""
