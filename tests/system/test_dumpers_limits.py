"""What ends a dumper's hold on a process: its time, its death, the agent's; and plugins."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import agent
from tests.system.dumping import UNLIMITED, deaf, join, told
from tests.system.victims import running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MOST_S = 1.0  # hold.max
SLACK_S = 20.0  # of a busy machine, for what must be over at once


def test_nobody_waits_for_a_dumper_longer_than_hold_max(tmp_path: Path) -> None:
    with agent(tmp_path, config=UNLIMITED, hold=f"max: {MOST_S:g}s") as one:
        with deaf(one, "hangs", 1000), running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
            record = one.record(victim.pid)
        assert MOST_S * 1e3 <= record["held_ms"] < (MOST_S + SLACK_S) * 1e3
        (dumper,) = record["dumpers"]
        assert dumper["status"] is None
        assert dumper["note"].startswith("it was not done in time")
        assert (record["outcome"], record["release"]) == ("complete", "instant")
        # WHEN dumpers are killed again and again while processes die
        pids = []
        for number in range(3):
            with deaf(one, f"unlucky-{number}", 0.05) as dumper_process:
                victims = []
                with contextlib.ExitStack() as alive:
                    for _ in range(4):
                        victims.append(alive.enter_context(running("null_main", cwd=tmp_path)))
                    for victim in victims:
                        victim.go()
                    time.sleep(random.uniform(0, 0.1))  # (any moment will do)
                    dumper_process.kill()
                    for victim in victims:
                        assert victim.wait() == -signal.SIGSEGV
                pids += [victim.pid for victim in victims]
        # THEN each death is on record, and nobody was held longer than that
        records = [one.record(pid) for pid in pids]
        assert {record["outcome"] for record in records} <= {"complete", "handled"}
        assert max(record["held_ms"] for record in records) < (MOST_S + SLACK_S) * 1e3


def test_a_killed_agent_releases_what_a_dumper_has(tmp_path: Path) -> None:
    with agent(tmp_path, config=UNLIMITED) as one:
        with join(one, "mine", "null_main") as client, running("null_main", cwd=tmp_path) as victim:
            victim.go()
            told(client, "DUMP").close()
            # WHEN the agent is killed
            one.process.kill()
            # THEN the process goes, and the next agent has it on record
            assert victim.wait() == -signal.SIGSEGV
        one.restart()
        record = one.record(victim.pid)
        assert (record["late"], record["core"]) == (True, None)


def test_a_plugin_has_the_process_as_a_user_of_its_own(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        # GIVEN a plugin
        (folder / "site_dumper.py").write_text(
            "import os\n"
            "from pathlib import Path\n"
            "from collector.dumpers.plugin import SPECIAL, SparseWriter, write_core\n"
            "class Keeper:\n"
            "    def probe(self, process):\n"
            "        return SPECIAL if process.threads() and process.mappings() else -1\n"
            "    def handle(self, process, limit):\n"
            f"        with open('{folder}/core', 'wb') as file:\n"
            "            write_core(process, SparseWriter(file.fileno()), limit=limit)\n"
            "        self.note = f'uid {os.getuid()}'\n"
        )
        config = (
            f"{UNLIMITED}\ndumpers: [{{name: keeper, module: 'site_dumper:Keeper', user: nobody, "
            "match: {comm: threads}}]"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(folder))
            with agent(tmp_path, config=config, metrics=True, hold="bids: 1s") as one:
                one.wait_line("dumper keeper .* is registered")
                # WHEN a process dies
                with running("threads", "20", cwd=tmp_path) as victim:
                    victim.go()
                    victim.wait()
                    record = one.record(victim.pid)
                assert record["outcome"] == "handled"
                (dumper,) = record["dumpers"]
                assert (dumper["name"], dumper["note"]) == ("keeper", "uid 65534")
                with CoreFile(folder / "core") as core:
                    assert len(core.threads) == record["threads"]
                # WHEN the policy does not name it any more, THEN it ends
                Path(one.arguments[1]).write_text(
                    Path(one.arguments[1]).read_text().partition("dumpers:")[0]
                )
                one.process.send_signal(signal.SIGHUP)
                one.wait_line("dumper keeper .* is gone: it has left")
                wait_until(lambda: not Path(f"/proc/{dumper['pid']}").exists(), "its end")
