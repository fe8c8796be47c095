"""Memory that keeps whoever reads it waiting, for as long as its owner likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import agent
from tests.system.victims import running

PLACE = 0x100000000000  # where the victim has mapped the file

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no FUSE here")


def test_a_file_that_never_answers_is_not_asked(mounted: Path, tmp_path: Path) -> None:
    # GIVEN an agent with one writer, and a process with a private mapping of a file of FUSE whose
    # owner answers nobody any more
    with agent(tmp_path, config="capture: {workers: 1}", metrics=True) as one:
        with running("fuse_private", str(mounted), cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        # WHEN an innocent one crashes behind it
        with running("null_main", cwd=tmp_path) as innocent:
            innocent.go()
            innocent.wait()
        # THEN both get their cores, the first one with what was in memory
        record = one.record(victim.pid)
        assert record["outcome"] == "complete"
        assert "of mapped files were not in memory" in record["lost"]["memory"]
        assert record["frames"][0]["function"] == "crash"
        with CoreFile(one.core(record, tmp_path / "plain")) as core:
            assert core.read(PLACE, 7) == b"of fuse"
            assert core.read(PLACE + 100, 1) == b"\1"
        record = one.record(innocent.pid)
        assert (record["outcome"], record["lost"]) == ("complete", {})
        # AND nobody hangs
        assert one.metric("coreward_hanging_processes") == 0
