"""A command that is started to be traced: it stands still until the tracer has it.

command = Command(["make", "all"])
tracer.attach(command.pid, from_exec=True)
command.go()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
from collections.abc import Sequence

from collector.errors import UsageError

_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # those that Python ignores
_NUMBER = struct.Struct("<i")


class Command:
    """One started command. `pid` is its process: a fork of ours that waits for `go`."""

    def __init__(self, words: Sequence[str]) -> None:
        """UsageError if there is no such program."""
        if not words:
            raise UsageError("no command is given")
        file = shutil.which(words[0])
        if file is None:
            raise UsageError(f"{words[0]}: no such command")
        self._go_read, self._go = os.pipe()
        self._failed, failed = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._go)
            _become(file, words, self._go_read, failed)
        os.close(self._go_read)
        os.close(failed)
        self._status: int | None = None

    def go(self) -> None:
        """Let it become the program. UsageError if the kernel does not take the file."""
        os.write(self._go, b"\n")
        os.close(self._go)
        with open(self._failed, "rb") as answer:
            number = answer.read(_NUMBER.size)  # the end: it is the program
        if len(number) == _NUMBER.size:
            self.wait()
            raise UsageError(f"it cannot be executed: {os.strerror(_NUMBER.unpack(number)[0])}")

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it has ended; reaps it."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def wait(self) -> int:
        """Its exit status, or 128 and the number of its signal, as shells say it."""
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code


def _become(file: str, words: Sequence[str], go: int, failed: int) -> None:
    """In the child: wait, then be the program. Does not return."""
    try:
        if not os.read(go, 1):
            os._exit(0)  # the tracer is gone
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        os.execve(file, [*words], os.environ)
    except OSError as error:
        os.write(failed, _NUMBER.pack(error.errno or 0))
    finally:
        os._exit(127)
