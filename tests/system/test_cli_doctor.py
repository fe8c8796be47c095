"""`coreward doctor` on a real machine: what it looks at, and the way back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.system.agents import PATIENCE, agent
from tests.system.needs import missing
from tests.system.settings import kernel_settings
from tests.system.victims import ROOT, running


def begun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    places = ["--store", str(folder / "store"), "--run-dir", str(folder / "run")]
    places += ["--pin-dir", f"/sys/fs/bpf/coreward-test-{os.getpid()}"]
    return subprocess.Popen(
        [sys.executable, "-m", "collector", "doctor", *places, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with begun(folder, *arguments) as process:
        said = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def by_name(said: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(said)}


def test_what_works_here(tmp_path: Path) -> None:
    # GIVEN a machine with the kernel's own core_pattern
    with kernel_settings(core_pattern="core"):
        done = doctor(tmp_path, "--json")
    # THEN none of the checks that are needed fails
    found = by_name(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name, check in found.items() if check["needed"] and not check["ok"]] == []
    assert found["core_pattern"]["detail"] == "'core'"
    assert found["pin"]["ok"]
    # AND what it says works was tried: programs that saw a death, crashes that were handed over
    handed_over = "socket hand-off: the kernel handed over a crash"
    tried = [name for name in found if name.startswith(("BPF, ", "hand-off ", "backtraces "))]
    assert {name: found[name]["detail"] for name in tried} == {
        "BPF, loader core": "loaded, attached; saw a process die",
        "backtraces of kills, core": found["backtraces of kills, core"]["detail"],
        "BPF, loader bcc": "loaded, attached; saw a process die",
        "backtraces of kills, bcc": found["backtraces of kills, bcc"]["detail"],
        "hand-off by socket": (missing("socket hand-off") or handed_over).partition(": ")[2],
        "hand-off by pipe": "the kernel handed over a crash",
    }
    assert found["deaths"]["detail"] == "every death is seen, and crashes keep their memory"
    assert not list(Path("/sys/fs/bpf").glob("coreward-doctor-*"))
    assert found["store"]["detail"].endswith("made at the agent's first start")
    assert {"drgn", "msgspec", "prometheus-client", "zstandard"} <= found.keys()


def test_another_handler_is_named(tmp_path: Path) -> None:
    with kernel_settings(core_pattern="|/bin/true %P"):
        done = doctor(tmp_path)
    assert done.returncode == 1
    lines = {line.split(None, 2)[1]: line for line in done.stdout.splitlines()}
    found = r"MISSING core_pattern +'\|/bin/true %P': another crash handler's; see hold.takeover"
    assert re.fullmatch(found, lines["core_pattern"])
    # AND every check has its line
    assert {"BPF,", "hand-off", "backtraces", "pin", "native", "deaths", "store"} <= lines.keys()


def test_what_a_killed_agent_has_left(tmp_path: Path) -> None:
    # GIVEN an agent that was killed
    with agent(tmp_path, core_pattern="core.%p") as one:
        pattern = one.settings.read("core_pattern")
        one.process.kill()
        one.process.wait()
        # THEN doctor sees whose setting that is
        found = by_name(doctor(tmp_path, "--json").stdout)
        assert found["core_pattern"]["detail"] == (
            f"{pattern!r}: that of an agent that has ended, so crashes leave no core; "
            "`coreward doctor --restore` puts back what was before"
        )
        # AND where it is looked for if it was another run directory
        other = tmp_path / "other"
        assert doctor(other, "--restore").stdout == (
            f"nothing to put back in {other / 'run'}; kernel.core_pattern is that of an agent with "
            f"another: see `coreward doctor --restore --run-dir {tmp_path / 'run'}`\n"
        )
        # WHEN it is told to put it back
        done = doctor(tmp_path, "--restore")
        # THEN it does, once
        assert (done.returncode, done.stderr) == (0, "")
        assert "kernel.core_pattern is 'core.%p' again" in done.stdout.splitlines()
        assert one.settings.read("core_pattern") == "core.%p"
        assert doctor(tmp_path, "--restore").stdout == "nothing to put back\n"
        # AND the BPF programs stay, until they are told to go
        assert one.pins.exists()
        assert doctor(tmp_path, "--unpin").returncode == 0
        assert not one.pins.exists()


def test_beside_an_agent(tmp_path: Path) -> None:
    # GIVEN an agent at work, with another doctor's places
    other = tmp_path / "other"
    other.mkdir()
    with agent(tmp_path, core_pattern="core") as one:
        pattern = one.settings.read("core_pattern")
        # WHEN doctor has looked
        with begun(other, "--json") as looking:
            found = by_name(looking.communicate(timeout=PATIENCE)[0])
        # AND whether another agent could start here: quickly, and without trying anything
        (other / "coreward.yaml").write_text("hold: {takeover: keep}")
        asked = doctor(other, "--json", "--before-run", str(other / "coreward.yaml"))
        assert asked.returncode == 1
        (alone,) = json.loads(asked.stdout)
        assert (alone["name"], alone["ok"]) == ("other agents", False)
        assert alone["detail"] == f"another process uses {one.pins}: only one agent can run"
        # THEN the agent kept the hand-off, and has no record of the deaths that were made for it
        assert not found["hand-off by pipe"]["ok"]
        assert found["hand-off by pipe"]["detail"].startswith("not tried: another coreward")
        assert found["BPF, loader core"]["ok"]
        assert one.settings.read("core_pattern") == pattern
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        one.record(victim.pid)
        parents = {one.info(record["id"])["ppid"] for record in one.listed()}
        assert looking.pid not in parents
        assert os.getpid() in parents
