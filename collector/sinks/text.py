"""A death in plain text, as logs have it: one sentence, and a backtrace. All names are clean."""

from __future__ import annotations

from collector.model import Cause, Frame, Record
from collector.store.encoding import spelled

MOST_FRAMES = 64
MOST = 4096  # characters of one value


def clean(text: object) -> str:
    """Without anything that a terminal would obey, and of bounded length."""
    shown = spelled(str(text))
    return shown if len(shown) <= MOST else shown[:MOST] + "…"


def is_crash(record: Record) -> bool:
    """Whether it died of something wrong, and was not ended by others or by itself."""
    return record.cause in (Cause.SIGNAL, Cause.OOM)


def signature(record: Record) -> str | None:
    """By which others of the same bug are found."""
    return None if record.signature is None else record.signature.id


def category(record: Record) -> str | None:
    """Of its diagnosis, if there is one."""
    return None if record.diagnosis is None else record.diagnosis.category.value


def headline(record: Record) -> str:
    """`Process 812 (victim) of user 1000: SIGSEGV: ...`"""
    user = "?" if record.uid is None else record.uid
    reason = record.reason or record.cause.value
    return clean(f"Process {record.pid} ({record.comm}) of user {user}: {reason}")


def stack_trace(record: Record) -> list[str]:
    """Its lines, innermost first, in the form of systemd-coredump; none without frames."""
    frames = record.frames or []
    lines = [_line(number, frame) for number, frame in enumerate(frames[:MOST_FRAMES])]
    if len(frames) > MOST_FRAMES:
        lines.append(f"... {len(frames) - MOST_FRAMES} more")
    return lines


def _line(number: int, frame: Frame) -> str:
    function = frame.function or "n/a"
    if frame.function and frame.offset is not None:
        function += f" + {frame.offset:#x}"
    module = (frame.module or "n/a").rsplit("/", 1)[-1]
    place = f" at {frame.file}:{frame.line}" if frame.file and frame.line else ""
    return clean(f"#{number:<3} {frame.pc:#018x} {function} ({module}){place}")
