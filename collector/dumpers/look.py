"""Looking at processes that dumpers have, while these have them; from another process.

    with Look(Path("/run/coreward/dumper"), pid) as look:
        look.process.read(address, size)
        look.check()           # it was held all the time

Who may register a dumper may look. It keeps nobody waiting: when the process is released, its
dumper being done with it, `check` says so.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from collector.dumpers.held import HeldProcess
from collector.dumpers.protocol import VERSION, Message, message, receive, send
from collector.errors import ProcessError

_ANSWER_S = 5.0  # seconds that the agent may take


def held_now(door: Path) -> list[int]:
    """The processes that a dumper has and that wait for it. OSError as connect(2); CorewardError if
    the agent does not let us look."""
    with _asked(door, message("LOOK", version=VERSION)) as connection:
        answer = _answer(connection)
        return [int(pid) for pid in answer.all("pid") if pid.isdecimal()]


class Look:
    """One process that a dumper has. A context manager."""

    def __init__(self, door: Path, pid: int) -> None:
        """ProcessLookupError if no dumper has it; else as `held_now`."""
        self._pid = pid
        self._connection = _asked(door, message("LOOK", version=VERSION, pid=pid))
        try:
            self._event = _answer(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self.process = HeldProcess(self._event)

    def check(self) -> None:
        """Raises ProcessError if it is not held any more; what was read before was."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if poll.poll(0):  # END, or the agent has gone
            raise ProcessError(f"process {self._pid} is not held any more")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._event.close()
        self._connection.close()


def _asked(door: Path, question: Message) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_ANSWER_S)
        connection.connect(os.fspath(door))
        send(connection, question)
    except BaseException:
        connection.close()
        raise
    return connection


def _answer(connection: socket.socket) -> Message:
    answer = receive(connection)
    if answer.verb in ("PROCESS", "HELD"):
        return answer
    answer.close()
    if answer.get("status") == str(errno.ESRCH):
        raise ProcessLookupError(errno.ESRCH, answer.get("why"))
    raise ProcessError(f"the agent says: {answer.get('why') or answer.verb}")
