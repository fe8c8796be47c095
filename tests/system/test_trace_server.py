"""Tracing a real server under load: the same calls, arguments and results as strace's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.system.straces import by_thread, compare
from tests.system.tracing import tracing
from tests.system.victims import wait_until

# in redis-tools of Debian, which runs no service: it is the server under the server's name
REDIS = shutil.which("redis-check-rdb")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        REDIS is None or shutil.which("strace") is None, reason="no Redis, or strace"
    ),
    pytest.mark.beside,
]

CONFIG = """
port 0
unixsocket redis.sock
dir .
save ""
appendonly yes
appendfsync always
"""
REQUESTS = 300


def say(stream: IO[bytes], *words: str) -> bytes:
    """One request, and the first line of its answer; of a text, the text."""
    parts = [f"*{len(words)}", *(part for word in words for part in (f"${len(word)}", word)), ""]
    stream.write("\r\n".join(parts).encode())
    stream.flush()
    line = stream.readline().rstrip()
    if line.startswith(b"$") and line != b"$-1":
        return stream.read(int(line[1:]) + 2)[:-2]
    return line


@contextlib.contextmanager
def connected(path: Path) -> Iterator[IO[bytes]]:
    """A client; a socket's path is short in its own folder."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{folder}/{path.name}")
            with client.makefile("rwb") as stream:
                yield stream
    finally:
        os.close(folder)


def listens(path: Path) -> bool:
    """Its socket is there before it can be connected to."""
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), connected(path):
        return True
    return False


def load(path: Path) -> None:
    """Some hundred requests of several clients, a child that saves, and the server's end."""
    with connected(path) as one, connected(path) as other:
        for number in range(REQUESTS // 3):
            assert say(one, "SET", f"key{number}", "x" * number) == b"+OK"
            assert say(other, "GET", f"key{number}") == b"x" * number
            assert say(other, "INCR", "count") == b":%d" % (number + 1)
        assert say(one, "BGSAVE") == b"+Background saving started"
        wait_until(
            lambda: b"rdb_bgsave_in_progress:0" in say(other, "INFO", "persistence"), "saved"
        )
        one.write(b"SHUTDOWN\r\n")
        one.flush()
        assert one.read() == b""


def test_a_server_under_load_is_seen_as_strace_sees_it(tmp_path: Path) -> None:
    # GIVEN a server under strace, which is traced itself
    server, theirs, ours = tmp_path / "redis-server", tmp_path / "theirs", tmp_path / "ours"
    server.symlink_to(str(REDIS))
    (tmp_path / "redis.conf").write_text(CONFIG)
    place = tmp_path / "redis.sock"
    strace = ["strace", "-f", "-s", "200", "-o", str(theirs), str(server), "redis.conf"]
    with tracing("--strings", "200", "-o", str(ours), "--", *strace, cwd=tmp_path) as reader:
        wait_until(lambda: listens(place), "the server listens")
        # WHEN it has served its clients
        load(place)
        _, said = reader.communicate()
    assert reader.returncode == 0, said
    assert "lost" not in said
    # THEN each thread, also of the child that saved, did the same: calls, arguments, results
    expected = by_thread(theirs.read_text())
    lines = [line for line in ours.read_text().splitlines() if line.startswith("[pid")]
    compared = compare(by_thread("\n".join(lines)), expected)
    assert len(expected) >= 6  # its main thread, those for slow work, the child
    assert compared > 4 * REQUESTS
