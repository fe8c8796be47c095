"""Names of signals. Pure; the numbers are those of Linux (signal(7))."""

from __future__ import annotations

import signal
from typing import overload

_NAMES = {int(member): member.name for member in signal.Signals}
# signal(7), disposition "Core": the kernel hands over what dies of these
CORE_SIGNALS = frozenset({3, 4, 5, 6, 7, 8, 11, 24, 25, 31})
_FIRST, _LAST = int(signal.SIGRTMIN), int(signal.SIGRTMAX)


@overload
def signal_name(number: int) -> str: ...
@overload
def signal_name(number: None) -> None: ...
def signal_name(number: int | None) -> str | None:
    """`SIGSEGV` of 11, `SIGRTMIN+3` of 37, `signal 77` of what has no name; None of None."""
    if number is None:
        return None
    if _FIRST < number < _LAST:
        return f"SIGRTMIN+{number - _FIRST}"
    return _NAMES.get(number, f"signal {number}")
