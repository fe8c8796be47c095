"""Sizes, durations and signals as people write them, and back.

Pure text; knows nothing of YAML. Every parser raises ValueError whose text says what would be
right. Sizes are bytes, durations seconds.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

_SIZE_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZE_UNITS_BY_LOWER = {unit.lower(): unit for unit in _SIZE_UNITS}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# 15 digits of a whole number are exact in a float, and no host has more bytes
_QUANTITY = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)")

MAX_SIGNAL = 64  # _NSIG of <asm/signal.h>
_SIGNALS = {
    name: int(number)
    for name, number in vars(signal).items()
    if re.fullmatch(r"SIG[A-Z][A-Z0-9]*", name) and isinstance(number, signal.Signals)
}


def parse_size(text: str) -> int:
    """Bytes of `1024`, `512MiB`, `10GB` or `1.5GiB`; raises ValueError."""
    right = "expected a size such as 512MiB, 8GiB, 10GB or 1024 (bytes)"
    number, unit = _quantity(text, right)
    if unit and unit not in _SIZE_UNITS:
        known = _SIZE_UNITS_BY_LOWER.get(unit.lower())
        if known:
            raise ValueError(f"unknown unit {quote(unit)}; did you mean {number}{known}?")
        short = unit.upper()
        if f"{short}iB" in _SIZE_UNITS:
            raise ValueError(
                f"{quote(text)} is ambiguous: write {number}{short}iB or {number}{short}B"
            )
        raise ValueError(f"unknown unit {quote(unit)}; {right}")
    size = float(number) * _SIZE_UNITS[unit or "B"]
    if size < 0:
        raise ValueError("a size cannot be negative")
    if size != int(size):
        raise ValueError(f"{quote(text)} is not a whole number of bytes")
    if size >= 1 << 60:
        raise ValueError(f"{quote(text)} is more than any host has")
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h`, `1d`, `2w` or `250ms`; greater than 0; raises ValueError."""
    right = "expected a duration such as 30s, 5m, 1h, 1d or 2w"
    number, unit = _quantity(text, right)
    if not unit:
        raise ValueError(f"{quote(text)} has no unit; {right}")
    if unit not in _DURATION_UNITS:
        raise ValueError(f"unknown unit {quote(unit)}; {right}")
    seconds = float(number) * _DURATION_UNITS[unit]
    if seconds <= 0:
        raise ValueError("a duration must be greater than 0")
    return seconds


def parse_signal(text: str) -> int:
    """Number of `SIGSEGV`, `SEGV`, `11` or `SIGRTMIN+3`; raises ValueError."""
    if re.fullmatch("[0-9]{1,9}", text):
        number = int(text)
        if not 1 <= number <= MAX_SIGNAL:
            raise ValueError(f"{number} is not a signal: they are 1 to {MAX_SIGNAL}")
        return number
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name in _SIGNALS:
        return _SIGNALS[name]
    if realtime := re.fullmatch(r"SIGRTMIN\+([0-9]{1,2})|SIGRTMAX-([0-9]{1,2})", name):
        up, down = realtime.groups()
        number = signal.SIGRTMIN + int(up) if up else signal.SIGRTMAX - int(down)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return int(number)
    known = [signal_.removeprefix("SIG") for signal_ in _SIGNALS]
    near = did_you_mean(name.removeprefix("SIG"), known)
    raise ValueError(f"{quote(text)} is not a signal{near or ' such as SIGSEGV, SEGV or 11'}")


def show_size(size: int) -> str:
    """`8GiB` of 8589934592: the largest unit in which it is a whole number of bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def show_duration(seconds: float) -> str:
    """`1h` of 3600.0: the largest unit in which it is a whole number."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds // _DURATION_UNITS[unit])}{unit}"
    return f"{seconds:g}s"


def quote(text: str, most: int = 80) -> str:
    """The text in double quotes, on one line, safe for a terminal, at most about `most` long."""
    clipped = text if len(text) <= most else text[:most] + "…"
    # repr escapes whatever is not printable, lone surrogates included
    inner = repr(clipped)[1:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{inner}"'


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "signal"?`, or nothing if no known word is near."""
    import difflib  # noqa: PLC0415 - a right policy has no use for it

    near = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=0.6)
    return f"; did you mean {quote(near[0])}?" if near else ""


def _quantity(text: str, right: str) -> tuple[str, str]:
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(f"{quote(text)} is not understood; {right}")
    return found[1], found[2]
