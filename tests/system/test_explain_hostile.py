"""Explaining cores that are damaged or hostile: it is bounded, and the record says what failed."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from collector.explain.run import explain_core
from collector.explain.types import Explanation
from tests.system.cores import KernelCore, kernel_core

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> KernelCore:
    return kernel_core("null_main", folder=tmp_path_factory.mktemp("core"))


def lost(explanation: Explanation) -> str:
    """Why there are no frames; there must be none, then."""
    assert explanation.frames is None
    return explanation.lost["frames"]


def children() -> set[str]:
    """Pids of this process's children, zombies among them."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for one in lists for pid in one.read_text().split()}


def test_what_is_no_core(tmp_path: Path) -> None:
    # GIVEN files that are anything but a core
    random_bytes, pipe = tmp_path / "random", tmp_path / "pipe"
    random_bytes.write_bytes(random.Random(1).randbytes(1 << 20))
    os.mkfifo(pipe)
    # THEN each is refused in words
    assert lost(explain_core(random_bytes)) == "not a core: no 64-bit little-endian ELF file"
    assert lost(explain_core(pipe)) == f"{pipe} is not a regular file"
    missing = tmp_path / "missing"
    assert lost(explain_core(missing)) == f"[Errno 2] No such file or directory: '{missing}'"


def test_truncated_cores(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN a core that was cut off within its header, its notes, its memory
    image, cut = core.path.read_bytes(), tmp_path / "cut"
    outcomes = []
    for size in (0, 40, 64, 1000, 4096, 100_000):
        cut.write_bytes(image[:size])
        explanation = explain_core(cut)
        outcomes.append((explanation.frames is None, "frames" in explanation.lost))
    # THEN none of them raises, and no frames are invented
    assert outcomes[:4] == [(True, True)] * 4
    assert all(none == named for none, named in outcomes)


def test_fuzzed_headers_and_notes(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN cores with some bytes of their headers and notes overwritten
    image, chance = core.path.read_bytes(), random.Random(20)
    for _ in range(40):
        damaged = bytearray(image)
        for _ in range(chance.randrange(1, 40)):
            damaged[chance.randrange(16, 8192)] = chance.randrange(256)
        (tmp_path / "fuzzed").write_bytes(damaged)
        # THEN there are frames, or a reason why there are none
        explanation = explain_core(tmp_path / "fuzzed", all_threads=True)
        assert (explanation.frames is None) == ("frames" in explanation.lost)


def test_the_time_is_bounded(core: KernelCore) -> None:
    # GIVEN less time than starting Python takes
    before = children()
    explanation = explain_core(core.path, timeout=0.005)
    # THEN the child is killed and reaped
    assert lost(explanation) == "explaining took longer than 0.005 seconds"
    assert children() <= before


def test_the_memory_is_bounded(core: KernelCore, tmp_path: Path) -> None:
    # GIVEN a core whose notes claim to be 200 MiB
    image = bytearray(core.path.read_bytes())
    phoff = struct.unpack_from("<Q", image, 32)[0]
    assert struct.unpack_from("<I", image, phoff)[0] == 4  # PT_NOTE
    struct.pack_into("<Q", image, phoff + 32, 200 << 20)
    greedy = tmp_path / "greedy"
    greedy.write_bytes(image)
    os.truncate(greedy, 300 << 20)
    # WHEN the child may have 96 MiB
    explanation = explain_core(greedy, memory=96 << 20)
    # THEN it fails, without having had more
    assert lost(explanation).endswith(("MemoryError", "Cannot allocate memory", "out of memory"))
    assert explanation.peak_rss < 200 << 20


CHILD = """
import json, os, socket
from pathlib import Path
from collector.explain.confine import confine
confine(os.getppid(), 1 << 30, 10)
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
def refused(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "allowed"
print(json.dumps({
    "ids": status["Uid"].split() + status["Gid"].split(),
    "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh")],
    "no_new_privs": status["NoNewPrivs"],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "reads a file of root": refused(lambda: open("/etc/shadow").close()),
    "writes a file of root": refused(lambda: open("/etc/shadow", "a").close()),
    "signals a process of root": refused(lambda: os.kill(os.getppid(), 0)),
    "nice": os.nice(0),
}))
"""


def test_what_the_child_may_still_do() -> None:
    # WHEN a process of root confines itself
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    # THEN it can read, and nothing else
    assert json.loads(done.stdout) == {
        "ids": ["65534"] * 8,
        "capabilities": [4, 4, 0],
        "no_new_privs": "1",
        "interfaces": ["lo"],
        "reads a file of root": "allowed",
        "writes a file of root": "Permission denied",
        "signals a process of root": "Operation not permitted",
        "nice": 19,
    }


def test_the_agent_side_loads_nothing_heavy() -> None:
    # GIVEN a process that imports what the agent imports
    code = (
        "import sys, collector.explain.run, collector.explain.reason; print('drgn' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    assert done.stdout == b"False\n"
