"""How a snapshot gets the calls that the threads of its process keep: it asks the flight recorder.

The recorder of an agent with `trace` rules listens at a socket in the agent's store, which only
the store's owner can reach (the folder's mode is 0700, and both sides look at SO_PEERCRED,
unix(7)). One connection, one question, one answer: AskCalls and Calls. A recorder leaves the
socket's file behind when it ends, as its successor may have put its own in that place; nobody
answers there then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector.errors import CorewardError
from collector.linux import procfs
from collector.model import CallsFacts
from collector.watch.messages import AskCalls, Calls, to_agent, to_recorder

log = logging.getLogger(__name__)

SOCKET = "recorder.sock"  # inside the store
PATIENCE_S = 2.0  # that a snapshot waits for its answer, and a question is waited for
_CLIENTS = 16  # connections at a time
_MAX_PACKET = 1 << 16  # bytes
_PEER = struct.Struct("<3i")  # struct ucred
_encoder = msgspec.msgpack.Encoder()


class _Client(NamedTuple):
    connection: socket.socket
    until: float  # time.monotonic


class Door:
    """The recorder's side. One thread at a time may use it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._listener: socket.socket | None = None
        self._clients: dict[int, _Client] = {}  # by descriptor

    def open(self) -> None:
        """Listen from now on. If that cannot be, the log says why, and snapshots have no calls."""
        if self._listener is not None:
            return
        listener = _socket()
        try:
            with _at(self._store) as place:
                Path(place).unlink(missing_ok=True)
                listener.bind(place)
                os.chmod(place, 0o600)  # noqa: PTH101 (the place is one of /proc)
            listener.listen(_CLIENTS)
        except OSError as error:
            listener.close()
            log.error("trace: %s: %s: snapshots have no calls", self._store / SOCKET, error)
            return
        self._listener = listener

    def close(self) -> None:
        """Answer nobody any more."""
        for descriptor in list(self._clients):
            self._drop(descriptor)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def descriptors(self) -> list[int]:
        """Any of them becomes readable when there is something for `questions`."""
        listening = [] if self._listener is None else [self._listener.fileno()]
        return listening + list(self._clients)

    def questions(self) -> Iterator[tuple[AskCalls, socket.socket]]:
        """What is asked now, each with whom `answer` is for. Waits for nobody."""
        self._accept()
        for descriptor, client in list(self._clients.items()):
            try:
                packet = client.connection.recv(_MAX_PACKET)
                message = to_recorder.decode(packet)
            except BlockingIOError:
                if time.monotonic() >= client.until:
                    self._drop(descriptor)
                continue
            except (OSError, msgspec.MsgspecError):
                self._drop(descriptor)
                continue
            if isinstance(message, AskCalls):
                yield message, client.connection
            self._drop(descriptor)

    @staticmethod
    def answer(connection: socket.socket, calls: Calls) -> None:
        """To be called before the next question is taken. Who has gone gets none."""
        with contextlib.suppress(OSError):
            connection.send(_encoder.encode(calls), socket.MSG_NOSIGNAL)

    def _accept(self) -> None:
        while self._listener is not None and len(self._clients) < _CLIENTS:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setblocking(False)
            if _is_ours(connection):
                until = time.monotonic() + PATIENCE_S
                self._clients[connection.fileno()] = _Client(connection, until)
            else:
                connection.close()

    def _drop(self, descriptor: int) -> None:
        self._clients.pop(descriptor).connection.close()


def kept_calls(store: Path, record: str, pid: int, folder: Path) -> CallsFacts | str | None:
    """Have the calls written that the threads of this process keep at this moment, into a record's
    folder. Why there are none, if there should be; None: no agent traces it."""
    stat = procfs.read(f"/proc/{pid}/stat")
    if not stat:
        return None
    start_ns = procfs.parse_stat(stat).start_ns
    ask = AskCalls(record=record, pid=pid, start_ns=start_ns, folder=str(folder.absolute()))
    with _socket() as connection:
        try:
            with _at(store) as place:
                connection.connect(place)
        except (FileNotFoundError, ConnectionRefusedError):
            return None  # no agent, or one without `trace` rules
        except OSError as error:
            return f"the flight recorder cannot be asked: {error.strerror}"
        try:
            answer = _ask(connection, ask)
        except OSError as error:
            return f"the flight recorder gave no answer: {error.strerror or error}"
        except (CorewardError, msgspec.MsgspecError) as error:
            return f"the flight recorder gave no answer: {error}"
    return answer.facts if answer.lost is None else answer.lost


def _ask(connection: socket.socket, ask: AskCalls) -> Calls:
    if not _is_ours(connection):
        raise CorewardError(f"{SOCKET} is somebody else's")
    connection.send(_encoder.encode(ask), socket.MSG_NOSIGNAL)
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(PATIENCE_S * 1000):
        raise CorewardError(f"it took longer than {PATIENCE_S:g} s")
    message = to_agent.decode(connection.recv(_MAX_PACKET))
    if not isinstance(message, Calls) or message.record != ask.record:
        raise CorewardError("it was no answer to the question")
    return message


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def _is_ours(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(raw)
    return bool(uid == os.geteuid())


@contextlib.contextmanager
def _at(store: Path) -> Iterator[str]:
    """The socket's place as a short path: sun_path has 108 bytes."""
    folder = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
