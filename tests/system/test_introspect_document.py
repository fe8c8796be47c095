"""The example and the commands of the documents about live processes do what is said there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collector.introspect import Process
from tests.system.test_introspect import CALLS, settled
from tests.system.victims import ROOT, running


def test_the_example_tells_a_process_and_its_threads(tmp_path: Path) -> None:
    # GIVEN the example as it stands in the document
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/introspect.md").read_text(), re.S)
    assert found is not None
    with running("sample_places", cwd=tmp_path) as victim:
        with Process(victim.pid) as process:
            threads = settled(process)
        exe = os.readlink(f"/proc/{victim.pid}/exe")
        # WHEN it is run for a process
        done = subprocess.run(
            [sys.executable, "-c", found[1], str(victim.pid)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    # THEN it tells all there is
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"sample_places[{victim.pid}] {exe}, user 0, since ")
    told = {tuple(line.split()[:4]) for line in lines[1:-2] if not line.startswith(" ")}
    assert told == {(str(t.tid), name, t.state, CALLS[name] or "-") for name, t in threads.items()}
    assert sum("bytes of stack" in line for line in lines) == len(threads)
    assert lines[-2:] == [
        r"b'\x7fELF'",
        f"process {victim.pid} has no readable memory at 0x0",
    ]


@pytest.mark.parametrize(
    "command",
    re.findall(r"^    coreward (.*?)(?:  .*)?$", (ROOT / "docs/sampling.md").read_text(), re.M),
)
def test_commands_that_are_shown_work(command: str, tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        # word by word: the victim may be number 4243
        pids = {"4242": str(victim.pid), "4243": str(os.getpid())}
        words = [pids.get(word, word) for word in command.split()]
        done = subprocess.run(
            # the times of the document are for people
            [sys.executable, "-m", "collector", *words, "--every", "50ms", "--for", "100ms"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "spin_inside" in done.stdout
