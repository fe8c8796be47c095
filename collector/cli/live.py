"""A page on a terminal that is drawn anew until a key ends it.

The terminal is given back as it was, whatever ends it: `q`, Ctrl-C, SIGTERM, a hang-up, or an error
of the one who draws. Stopped by Ctrl-Z it is given back meanwhile. A change of its size draws the
page at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType

_ENTER = "\x1b[?1049h\x1b[?25l"  # the other screen, without a cursor (xterm's ctlseqs)
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_USUAL_HEIGHT = 24
_ENDING = (signal.SIGTERM, signal.SIGHUP)

Draw = Callable[[str | None, int], list[str]]  # the key that was pressed, lines; the page


def live(draw: Draw, every: float) -> None:
    """Returns when `q` was pressed, or the terminal is gone."""
    page = _Page()
    with contextlib.suppress(_TerminalGone), page:
        key: str | None = None
        due = time.monotonic() + every
        while True:
            page.show(draw(key, page.height()))
            key = page.wait(due - time.monotonic())
            if key == "q" or page.gone:
                return
            if key is None or time.monotonic() >= due:
                due = time.monotonic() + every


class _Page:
    """The terminal while it shows the page. A context manager."""

    def __init__(self) -> None:
        self.gone = False
        self._out = sys.stdout.fileno()
        self._in = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._typed = ""  # 64 keys at most
        self._modes: list[object] | None = None
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> _Page:
        with contextlib.ExitStack() as ends:
            ends.callback(os.close, self._wake)
            ends.callback(os.close, self._woken)
            ends.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._woken))
            for number in _ENDING:
                ends.enter_context(_handled(number, _end))
            ends.enter_context(_handled(signal.SIGWINCH, lambda _number, _frame: None))
            ends.enter_context(_handled(signal.SIGTSTP, self._stop))
            ends.callback(self._leave)
            self._enter()
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def height(self) -> int:
        """In lines. 0, says a terminal that was never told its size."""
        try:
            return os.get_terminal_size(self._out).lines or _USUAL_HEIGHT
        except OSError as error:
            raise _TerminalGone from error

    def show(self, lines: list[str]) -> None:
        """The page, each line as wide as the terminal at most."""
        # what was there goes first: behind a line that is full, the cursor is still on its last
        # character, which would go instead
        *others, last = lines or [""]
        drawn = "".join(f"{_TO_END_OF_LINE}{line}\n" for line in others)
        self._write(f"{_HOME}{drawn}{_TO_END}{last}")

    def wait(self, seconds: float) -> str | None:
        """The key that is pressed meanwhile; None after a change of size, or so many seconds."""
        watched = [self._wake] if self._in is None else [self._wake, self._in]
        if self._typed:
            return self._next()
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._wake in ready:
            os.read(self._wake, 512)
        if self._in is None or self._in not in ready:
            return None
        try:
            pressed = os.read(self._in, 64)
        except OSError:
            pressed = b""
        self.gone = not pressed
        self._typed += pressed.decode("ascii", "replace").lower()
        return self._next() if self._typed else None

    def _next(self) -> str:
        """The first of the keys that were typed and not taken yet; `q` ends it whatever is typed
        before."""
        key, self._typed = self._typed[0], self._typed[1:]
        return "q" if "q" in self._typed else key

    def _enter(self) -> None:
        if self._in is not None:
            try:
                self._modes = termios.tcgetattr(self._in)
                tty.setcbreak(self._in)
            except termios.error as error:
                raise _TerminalGone from error
        self._write(_ENTER)

    def _leave(self) -> None:
        with contextlib.suppress(_TerminalGone):
            self._write(_LEAVE)
        if self._in is not None and self._modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._modes)  # type: ignore[arg-type]

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()  # it goes on

    def _write(self, text: str) -> None:
        left = text.encode("utf-8", "backslashreplace")
        try:
            while left:
                left = left[os.write(self._out, left) :]
        except OSError as error:  # EIO: nobody is at the other end
            raise _TerminalGone from error


class _TerminalGone(Exception):
    """There is nobody to show anything to."""


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _handled(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
