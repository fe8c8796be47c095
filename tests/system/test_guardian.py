"""A test run that is killed leaves the machine as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.scratch import PREFIX
from tests.system.settings import PATHS, SAVED, kernel_settings
from tests.system.victims import ROOT, wait_until


def is_watched(pid: int) -> bool:
    wanted = f"tests.system.guardian\0{pid}\0".encode()
    return any(wanted in _read(file) for file in Path("/proc").glob("[0-9]*/cmdline"))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def settings() -> list[str]:
    return [path.read_text() for path in PATHS.values()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_killed_run_leaves_nothing(number: int) -> None:
    with kernel_settings():  # whatever an earlier one has left is put back
        pass
    before = settings()
    # GIVEN a run whose agent has taken crashes over
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        [*command, "tests/system/abandoned.py"], cwd=ROOT, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        said = [line for line in iter(run.stdout.readline, b"busy\n") if line]
        assert run.poll() is None, said
        assert settings() != before
        # WHEN it is killed, and its guardian is done
        run.send_signal(number)
    wait_until(lambda: not is_watched(run.pid), "the guardian does not end")
    # THEN nothing of it is there
    assert (settings(), SAVED.exists()) == (before, False)
    name = f"{PREFIX}{run.pid}"
    assert not (Path("/sys/fs/bpf") / name).exists()
    assert name not in Path("/proc/self/mounts").read_text()
