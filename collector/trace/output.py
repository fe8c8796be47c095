"""The stream of a trace as text: one line for a call, a signal, an end.

A thread that has been in a call for a while is shown to be, as strace shows it: `read(0, 0x7f...
<unfinished ...>`, and `<... read resumed>` when it has returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from collector.trace.layout import Call, CallEvent, Event, ExitEvent, Present
from collector.trace.notation import Notation, call_name

Write = Callable[[str], object]


class Stream:
    """Writes events as lines. numbered: with the thread's id even while there is but one."""

    def __init__(self, notation: Notation, write: Write, *, times: bool, numbered: bool) -> None:
        self._notation = notation
        self._write = write
        self._times = times
        self._numbered = numbered
        self._first: int | None = None  # the only thread so far
        self._open: dict[int, Call] = {}  # by thread: calls that were shown as unfinished
        self._offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def show(self, event: Event) -> None:
        """Write what there is to say of an event."""
        lines = self._notation.lines(event)
        shown = self._open.pop(event.tid, None)
        if isinstance(event, CallEvent):
            call = event.call
            if shown is not None and _is_same(shown, call):
                resumed = f"<... {call_name(call)} resumed>) = {self._notation.result(call)}"
                lines[-1] = resumed
            elif call.no_entry and call.result is not None:
                lines[-1] += " /* its begin was not seen */"
        elif shown is not None and not isinstance(event, ExitEvent):
            self._open[event.tid] = shown
        for line in lines:
            self._line(event.tid, event.time_ns, line)

    def show_present(self, threads: Iterable[Present], now_ns: int, after_ns: int) -> None:
        """Show calls that have not returned for `after_ns`, each once."""
        for thread in threads:
            call = thread.call
            if call is None or call.enter_ns is None or now_ns - call.enter_ns < after_ns:
                continue
            known = self._open.get(thread.tid)
            if known is None or not _is_same(known, call):
                self._open[thread.tid] = call
                begun = self._notation.begun(call)
                self._line(thread.tid, call.enter_ns, f"{begun} <unfinished ...>")

    def note(self, text: str) -> None:
        """A line of the tracer's own."""
        self._write(f"--- {text} ---\n")

    def _line(self, tid: int, time_ns: int, text: str) -> None:
        if self._first is None:
            self._first = tid
        if tid != self._first:
            self._numbered = True
        parts = []
        if self._numbered:
            parts.append(f"[pid {tid:5}] ")
        if self._times:
            seconds, rest = divmod(time_ns + self._offset, 10**9)
            clock = time.strftime("%H:%M:%S", time.localtime(seconds))
            parts.append(f"{clock}.{rest // 1000:06} ")
        self._write(f"{''.join(parts)}{text}\n")


def _is_same(one: Call, other: Call) -> bool:
    return one.enter_ns == other.enter_ns and one.number == other.number
