"""The last lines that a unit wrote to the journal: journalctl(1), in a process left after a moment.

The journal may be large, or on a disk that does not answer, and what is in it is hostile: nobody
waits longer than TIMEOUT_S, and no more of a line is kept than MOST_CHARACTERS.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec

from collector.circumstances import LogLine
from collector.errors import CorewardError
from collector.linux import children

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
    path = shutil.which(program)
    if path is None:
        raise CorewardError(f"{program} is not there")
    command = [
        *(path, "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_PID"),
        *(f"--lines={count}", f"--until=@{until.timestamp():.6f}", f"_SYSTEMD_UNIT={unit}"),
    ]
    if uid is not None:
        command.append(f"_UID={uid}")
    try:
        child = children.start(
            command,
            _NICE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C", "PATH": os.defpath},
        )
    except OSError as error:
        raise CorewardError(f"{path}: {error.strerror}") from error
    try:
        answer, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise CorewardError(f"the journal was not read within {seconds:g} s") from error
    finally:
        children.kill(child)
        if child.stdout is not None:
            child.stdout.close()
    if child.returncode:
        raise CorewardError(f"{program} ended with status {child.returncode}")
    return list(_lines(answer[:_MOST]))[-count:]


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
