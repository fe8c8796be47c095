"""The oldest kernel that the README names, booted: five deaths under the agent, by the pipe.

All that `make kernels` tries is far more, and takes an hour.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from tests.kernels.boot import boot
from tests.kernels.features import Cell, State
from tests.kernels.images import fetch
from tests.kernels.prepare import ROOT, SLOWNESS, prepare

FIVE = ("worker", "abort", "killed", "exit", "oom")
WANTED = (
    *("ready", *FIVE, "exit-exe"),
    *("backtraces", "kill-backtrace", "alone", "settings"),
)
LIMIT_S = 300.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_five_deaths_on_linux_6_1(tmp_path: Path) -> None:
    # GIVEN a guest with Linux 6.1
    prepare()
    command = [sys.executable, "-m", "tests.kernels.scenarios"]
    command += [
        "--loader",
        "core",
        "--handoff",
        "pipe",
        "--only",
        *WANTED,
        "--out",
        "/mnt/out/cells.json",
    ]
    # WHEN five processes die there, with the agent watching
    result = boot(
        *(fetch("6.1"), command),
        folder=ROOT,
        out=tmp_path,
        limit_s=LIMIT_S,
        env={"COREWARD_TEST_SLOWNESS": str(SLOWNESS)},
    )
    # THEN each record is true, nothing else is on record, and settings are as before
    assert result.problem(LIMIT_S) is None
    assert result.status == 0, result.output
    cells = msgspec.json.decode((tmp_path / "cells.json").read_bytes(), type=list[Cell])
    found = {cell.feature: (cell.state, cell.detail) for cell in cells}
    assert found == dict.fromkeys(WANTED, (State.WORKS, ""))
    assert all(cell.release.startswith("6.1.") for cell in cells)
