"""The examples that write other formats, or elsewhere, and real crashes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from minidump.minidumpfile import MinidumpFile

from collector.elfcore.reader import CoreFile
from tests.system.agents import agent
from tests.system.dumping import UNLIMITED
from tests.system.victims import ROOT, running
from tests.unit.collecting import collecting, make_certificates
from tests.unit.test_dumpers_process import registered

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

EXAMPLES = ROOT / "examples" / "dumpers"


def test_a_minidump_and_a_core_elsewhere(tmp_path: Path) -> None:
    certificates, dumps, cores = tmp_path / "certificates", tmp_path / "dumps", tmp_path / "cores"
    for folder in (certificates, dumps, cores):
        folder.mkdir()
    make_certificates(certificates)
    with (
        agent(tmp_path, config=UNLIMITED, hold="max: 1h") as one,
        collecting(cores, certificates) as port,
    ):
        door = str(one.run_dir / "dumper")
        minidumps = [
            *(sys.executable, str(EXAMPLES / "minidumps.py"), door, str(dumps)),
            *("--pin", "--match", "comm=threads"),
        ]
        stream = [
            *(sys.executable, str(EXAMPLES / "tls_stream.py"), door, f"localhost:{port}"),
            *("--ca", "ours-ca.pem", "--match", "comm=null_main"),
        ]
        # GIVEN a process of many threads, and one of a single thread
        with (
            registered(minidumps, ROOT),
            registered(stream, certificates),
            running("threads", "20", cwd=tmp_path) as many,
            running("null_main", cwd=tmp_path) as single,
        ):
            # WHEN both die
            many.go()
            single.go()
            assert many.wait() < 0
            assert single.wait() == -signal.SIGSEGV
            crowd, alone = one.record(many.pid), one.record(single.pid)
    # THEN one has a minidump, made when it had gone
    assert (crowd["outcome"], crowd["core"]) == ("handled", None)
    assert [(d["status"], d["held"]) for d in crowd["dumpers"]] == [(0, False)]
    read = MinidumpFile.parse(dumps / f"{many.pid}.dmp")
    (died,) = read.exception.exception_records
    assert len(read.threads.threads) == crowd["threads"] > 1
    first = read.threads.threads[0]
    assert died.ThreadId == first.ThreadId == crowd["tid"]
    assert died.ExceptionRecord.ExceptionCode_raw == crowd["signal"]
    assert (first.ContextObject.Rip, first.ContextObject.Rsp) == (crowd["ip"], crowd["sp"])
    assert first.Stack.MemoryLocation.DataSize > 0
    assert read.modules.modules[0].name == crowd["exe"]
    # AND the other one a core at the collector's, that debuggers take
    (core,) = cores.iterdir()
    assert (alone["outcome"], alone["dumpers"][0]["status"]) == ("handled", 0)
    with CoreFile(core) as found:
        assert [thread.signal for thread in found.threads] == [signal.SIGSEGV]
        assert found.threads[0].regs[16] == alone["ip"]
