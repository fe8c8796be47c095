"""Programs that changed their user, dumped for root only: suid_dumpable 2 of proc(5)."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.system.agents import agent, functions
from tests.system.victims import build, running

OWNER, CALLER = 4343, 65534


@pytest.mark.parametrize("backend", ["socket", "pipe"])
def test_a_set_user_id_program_is_handed_over(backend: str, tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="coreward-") as folder,
        agent(tmp_path, backend=backend, suid_dumpable="2") as one,
    ):
        # GIVEN a set-user-id program of one user that another one has started
        program = Path(folder) / "setuid_null"
        Path(folder).chmod(0o755)
        shutil.copy(build("setuid_null"), program)
        os.chown(program, OWNER, OWNER)
        program.chmod(0o4755)
        # WHEN it crashes
        with running("setuid_null", cwd=Path("/"), file=program, uid=CALLER) as victim:
            victim.go()
            victim.wait()
        record = one.record(victim.pid)
        # THEN it is on record, and only root can read anything of it
        assert (record["signal_name"], record["uid"]) == ("SIGSEGV", CALLER)
        place = one.store / "crashes" / record["id"]
        for path in (place, *place.iterdir()):
            about = path.stat()
            assert (about.st_uid, about.st_mode & 0o077) == (0, 0)
        if any("no limits: Operation not permitted" in line for line in one.lines):
            pytest.xfail("root without CAP_SYS_RESOURCE: the native part leaves it")
        # AND all of it is there, as of any other program
        assert record["outcome"] == "complete"
        assert functions(record)[0] == "privileged"
