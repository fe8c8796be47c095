"""Cores of processes that wait for their dumper, read through a mount."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import agent
from tests.system.dumping import UNLIMITED, is_dying, join, told
from tests.system.mounts import as_nobody, mount
from tests.system.snapshots import NOBODY, nobodys_folder
from tests.system.victims import running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_a_held_process_is_a_core_until_it_is_released(tmp_path: Path) -> None:
    with (
        agent(tmp_path, config=UNLIMITED, hold="max: 1h") as one,
        nobodys_folder() as folder,
        mount(folder, "--run-dir", str(one.run_dir), "--allow", str(NOBODY)) as mounted,
        join(one, "mine", "threads") as client,
        running("threads", "20", cwd=tmp_path) as victim,
    ):
        held = mounted.folder / "held"
        assert [*held.iterdir()] == []
        # GIVEN a process that its dumper has
        victim.go()
        event = told(client, "DUMP")
        # WHEN its core is looked at, THEN it is there, with all threads
        (path,) = held.iterdir()
        assert path.name == f"{victim.pid}.core"
        with CoreFile(path) as core:
            threads = core.threads
            assert [threads[0].signal, len(threads)] == [signal.SIGSEGV, 21]
            stack = core.read(threads[0].regs[19], 64)
        gdb = subprocess.run(
            [
                "gdb",
                "-nx",
                "-batch",
                "-ex",
                "bt",
                os.readlink(f"/proc/{victim.pid}/exe"),
                str(path),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "terminated with signal SIGSEGV" in gdb.stdout
        # AND the user whose process it is not sees none
        assert as_nobody(f"ls {held}").stdout == ""
        assert "No such file" in as_nobody(f"head -c 4 {path}").stderr
        # AND it waits still; its dumper sees the same
        assert is_dying(victim)
        assert os.pread(event.fds["mem"], 64, threads[0].regs[19]) == stack
        # WHEN it is released while somebody has it open
        with path.open("rb", buffering=0) as open_core:
            assert open_core.read(4) == b"\x7fELF"
            client.let_go(event, 0)
            event.close()
            victim.wait()
            # THEN reads fail, and give nothing else
            with pytest.raises(OSError) as failed:
                os.pread(open_core.fileno(), 4096, 4096)
        assert failed.value.errno == errno.EIO
        assert "not held any more" in mounted.log
        assert [*held.iterdir()] == []
        assert one.record(victim.pid)["outcome"] == "handled"
