"""The probe that asks an agent whether it is alive, and whether it sees deaths."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import pytest

from collector.health.alive import main, trouble

GOOD = {"bpf": "core", "handoff": "socket", "core_pattern_ours": True}


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[str]:
    """Somebody who says this, once."""
    with socket(AF_UNIX, SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()


def state(**differs: object) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n" + json.dumps({**GOOD, **differs}).encode()


@pytest.mark.parametrize(
    ("answer", "alive", "ready"),
    [
        (state(), True, True),
        (state(handoff="none", core_pattern_ours=None), True, True),
        (state(bpf="none", handoff="none", core_pattern_ours=None), True, False),
        (state(core_pattern_ours=False), True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n{", True, False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n{}", False, False),
        (b"", False, False),
    ],
)
def test_what_an_answer_means(answer: bytes, alive: bool, ready: bool, tmp_path: Path) -> None:
    for asked, good in ((False, alive), (True, ready)):
        with answering(tmp_path / f"{asked}", answer) as path:
            assert (trouble(path, ready=asked) is None) == good


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none")
    assert main([path]) == 1
    assert capsys.readouterr().out == f"{path}: nobody answers: No such file or directory\n"
    assert main([]) == main(["--raedy", path]) == 2


def test_a_probe_loads_next_to_nothing(tmp_path: Path) -> None:
    code = "import sys, collector.health.alive; print({'msgspec', 'ssl', 'http'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
