"""When the agent cannot start it says why in one line, and has changed nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.store.store import Store
from tests.system.agents import PATIENCE, agent
from tests.system.needs import by_socket
from tests.system.settings import KernelSettings, kernel_settings
from tests.system.victims import ROOT, running
from tests.unit.store_samples import numbered

NOBODY = 65534
PATTERN = "core.%p"
FOREIGN = "|/bin/true %P"


@pytest.fixture
def settings() -> Iterator[KernelSettings]:
    with kernel_settings(core_pattern=PATTERN, core_pipe_limit="0") as kernel:
        yield kernel


class Attempt:
    """An agent that is expected to refuse; all its places are below `folder`."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.pins = Path(f"/sys/fs/bpf/coreward-test-{os.getpid()}")
        self.file = folder / "coreward.yaml"
        self.file.write_text(f"metrics: {{listen: off}}\n{config}")
        self.arguments = [
            *("run", "--config", str(self.file), "--store", str(folder / "var" / "store")),
            *("--run-dir", str(folder / "run"), "--pin-dir", str(self.pins)),
        ]

    def run(self, *more: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
        become = "" if uid is None else f"import collector.cli.run; os.setuid({uid}); "
        code = (
            f"import os, sys; from collector.cli import main; {become}sys.exit(main(sys.argv[1:]))"
        )
        return subprocess.run(
            [sys.executable, "-c", code, *self.arguments, *more],
            capture_output=True,
            check=False,
            cwd=ROOT,
            text=True,
            timeout=PATIENCE,
        )

    def refusal(self, *more: str, uid: int | None = None) -> tuple[int, str]:
        """Its exit status and its one line; everything that it had set up is gone again."""
        done = self.run(*more, uid=uid)
        assert done.stdout == ""
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("INFO ")]
        assert not self.pins.exists()
        assert [path.name for path in self.folder.iterdir()] == [self.file.name]
        return done.returncode, line


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_another_crash_handler_is_not_replaced(
    backend: str, settings: KernelSettings, tmp_path: Path
) -> None:
    # GIVEN a machine on which another crash handler is installed
    settings.write("core_pattern", FOREIGN)
    # WHEN the agent starts without leave to replace it
    status, line = Attempt(tmp_path, f"hold: {{backend: {backend}}}").refusal()
    # THEN it refuses, and says what could be done
    assert (status, line) == (
        1,
        f"coreward: kernel.core_pattern is '{FOREIGN}': another crash handler is installed; "
        "remove it, or set `hold.takeover: true` to replace it while coreward runs",
    )
    assert settings.read("core_pattern") == FOREIGN


def test_another_crash_handler_is_replaced_by_leave(tmp_path: Path) -> None:
    # GIVEN leave to replace the other handler
    with agent(tmp_path, takeover=True, core_pattern=FOREIGN) as one:
        # THEN a crash is ours
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        assert one.record(victim.pid)["outcome"] == "complete"
        # AND when the agent stops, the other handler is back
        assert one.stop() == 0
        assert one.settings.read("core_pattern") == FOREIGN


def test_it_is_not_root(settings: KernelSettings, tmp_path: Path) -> None:
    status, line = Attempt(tmp_path, "").refusal(uid=NOBODY)
    assert (status, line) == (
        1,
        "coreward: the agent needs root: it sees every process's death",
    )
    assert settings.read("core_pattern") == PATTERN


def test_the_port_is_in_use(settings: KernelSettings, tmp_path: Path) -> None:
    # GIVEN somebody on the port of the metrics
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # WHEN the agent starts
        status, line = Attempt(tmp_path, "").refusal("--listen", f"127.0.0.1:{port}")
    # THEN it refuses, and the kernel's settings are as before
    assert (status, line) == (
        1,
        f"coreward: metrics: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "change `metrics.listen` or set it to `off`",
    )
    assert settings.read("core_pattern") == PATTERN


def test_what_was_there_before_stays(settings: KernelSettings, tmp_path: Path) -> None:
    # GIVEN a store with a record, and a run directory of an earlier agent
    attempt = Attempt(tmp_path, "")
    store, run = tmp_path / "var" / "store", tmp_path / "run"
    with Store(store, create=True) as earlier:
        earlier.put(numbered(1, reason="it died"))
    run.mkdir(mode=0o700)
    # WHEN the agent refuses to start
    settings.write("core_pattern", FOREIGN)
    assert attempt.run().returncode == 1
    # THEN they are as before
    assert run.is_dir()
    with Store(store, create=False, readonly=True) as same:
        # (others die on this machine, too, and it sees them from its first moment on)
        assert "it died" in [record.reason for record in same.list()]


def test_the_configuration_is_wrong(settings: KernelSettings, tmp_path: Path) -> None:
    # GIVEN a configuration with a key that there is not
    attempt = Attempt(tmp_path, "hold: {backed: socket}")
    # WHEN the agent starts
    status, line = attempt.refusal()
    # THEN it names file, line, key and what would be right
    assert status == 2
    assert re.fullmatch(rf"coreward: {attempt.file}:2: hold\.backed: .*backend.*", line)
    assert settings.read("core_pattern") == PATTERN


def test_two_agents(tmp_path: Path) -> None:
    # GIVEN an agent at work
    with agent(tmp_path) as one:
        pattern = one.settings.read("core_pattern")
        # WHEN another one starts, with places of its own
        other = tmp_path / "other"
        other.mkdir()
        attempt = Attempt(other, "")
        attempt.pins = Path(f"{one.pins}-other")
        attempt.arguments[attempt.arguments.index("--pin-dir") + 1] = str(attempt.pins)
        status, line = attempt.refusal()
        # THEN it refuses and the first is not disturbed
        assert status == 1
        assert "another coreward agent has the hand-off; stop it first" in line
        # AND it has looked into no store, which may be that of the first
        assert not (other / "var").exists()
        assert one.settings.read("core_pattern") == pattern


BLIND = ("--bpf", "none")
NO_HANDOFF = "hold: {backend: none}"


def test_neither_bpf_nor_a_hand_off(settings: KernelSettings, tmp_path: Path) -> None:
    # WHEN an agent starts that could see no death at all
    status, line = Attempt(tmp_path, NO_HANDOFF).refusal(*BLIND)
    # THEN it does not say that it is ready: it says what is missing, and what could be done
    assert (status, line) == (
        1,
        "coreward: no death can be seen: no BPF (--bpf none), and no hand-off (hold.backend is "
        "none); `coreward doctor` says what is missing, --degraded starts the agent all the same",
    )


def test_neither_bpf_nor_a_hand_off_by_leave(settings: KernelSettings, tmp_path: Path) -> None:
    # GIVEN leave to start all the same
    attempt = Attempt(tmp_path, NO_HANDOFF)
    command = [sys.executable, "-m", "collector", *attempt.arguments, *BLIND, "--degraded"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as one:
        # THEN it runs, and says that it is of no use
        assert one.stdout is not None
        assert one.stdout.readline().startswith("degraded, no death is seen: no BPF, none hand-off")
        one.terminate()
        assert one.wait(PATIENCE) == 0
