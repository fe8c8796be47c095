"""A record without what a policy redacts, by a process of its own, which has RE2 and little time.

    python -m collector.redact         a Question on its standard input, the record on its output
    python -m collector.redact.check   expressions, and what is wrong with them

The record's texts are hostile, and its reader is not to become larger for them. Where the process
fails the record has none of these texts, and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import collector
from collector.linux import children
from collector.model import Record
from collector.redact.record import withheld
from collector.redact.types import Redact

_TIME = 30.0  # seconds; on a busy host much more than it takes
_NICE = 19
_MOST = 64 << 20  # bytes of an answer


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A record, and what is to be hidden of it. secrets: as capture.job.Written has them."""

    record: Record
    redact: Redact
    secrets: dict[str, list[str]] = {}


def redacted(
    record: Record, redact: Redact, secrets: dict[str, list[str]], timeout: float = _TIME
) -> Record:
    """The record as it may be kept. Its texts must be UTF-8. Raises nothing."""
    question = Question(record=record, redact=redact, secrets=secrets)
    try:
        answer = _ask("collector.redact", msgspec.json.encode(question), timeout)
        found = msgspec.json.decode(answer[:_MOST], type=Record)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError, UnicodeError) as error:
        lost = {**record.lost, "redaction": f"its texts are left out, nobody could look: {error}"}
        return withheld(msgspec.structs.replace(record, lost=lost))
    return found


def wrong(regexes: Sequence[str], timeout: float = _TIME) -> list[str | None]:
    """For each expression what is wrong with it; None: nothing is. Raises nothing."""
    try:
        answer = _ask("collector.redact.check", msgspec.json.encode(regexes), timeout)
        return msgspec.json.decode(answer[:_MOST], type=list[str | None])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError, UnicodeError) as error:
        return [f"cannot be checked: {error}" for _ in regexes]


def _ask(module: str, question: bytes, timeout: float) -> bytes:
    child = children.start(
        [sys.executable, "-P", "-s", "-m", module, str(os.getpid())],
        _NICE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(Path(collector.__file__).resolve().parents[1]),
        },
        cwd="/",
    )
    try:
        output, _ = child.communicate(question, timeout)
    finally:
        children.kill(child)
    if child.returncode != 0:
        raise subprocess.SubprocessError(f"it ended with status {child.returncode}")
    return bytes(output)
