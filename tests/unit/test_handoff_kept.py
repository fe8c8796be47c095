"""A listening socket outlives the agent: who has connected meanwhile is the next agent's."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from collector.errors import HoldError
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native

PATIENCE = 10.0


def connected(path: Path) -> socket.socket:
    """Somebody who is no dying process: the agent refuses him when it takes him."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.connect(str(path))
    return one


def test_who_connects_between_two_agents_is_taken_by_the_second(tmp_path: Path) -> None:
    # GIVEN an agent whose threads take from a socket that somebody else keeps
    path = tmp_path / "core.sock"
    first, taking = SocketBackend(path), Native(stream=False)
    taking.serve(first)
    kept = os.dup(first.fileno())
    with connected(path), pytest.raises(HoldError, match="not dumping core"):
        taking.take(PATIENCE)
    # WHEN it takes no more THEN it says that all was taken, to whoever waits
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(taking.take()), daemon=True)
    waiting.start()
    taking.stop_taking()
    waiting.join(PATIENCE)
    assert answers == [None]
    # AND who connects then waits, also when its own descriptors are closed
    with connected(path) as other:
        first.leave()
        taking.leave()
        assert path.is_socket()
        # AND the next agent takes him
        second, next_taking = SocketBackend(path, kept), Native(stream=False)
        assert second.is_kept
        next_taking.serve(second)
        with pytest.raises(HoldError, match="not dumping core"):
            next_taking.take(PATIENCE)
        assert other.recv(1) == b""
    # AND at its end the socket has gone
    second.close()
    assert next_taking.take(PATIENCE) is None
    next_taking.leave()
    assert not path.exists()


@pytest.mark.parametrize("what", ["another path", "not listening", "a file", "removed"])
def test_a_descriptor_that_does_not_listen_there_is_replaced(tmp_path: Path, what: str) -> None:
    # GIVEN a descriptor that is not what it should be
    path = tmp_path / "core.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(str(tmp_path / "other.sock" if what == "another path" else path))
        if what != "not listening":
            one.listen()
        if what == "removed":
            path.unlink()
        kept = os.open(os.devnull, os.O_RDONLY) if what == "a file" else os.dup(one.fileno())
    # WHEN an agent is given it
    backend = SocketBackend(path, kept)
    # THEN it listens with one of its own
    assert not backend.is_kept
    with connected(path):
        pass
    backend.close()
