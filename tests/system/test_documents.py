"""Each command that the documents show is run, as it stands there.

Commands are the lines of `console` blocks that begin with "$ ", and indented lines of the docs that
begin with `coreward`. `coreward` is that of this checkout, its store one with a real crash in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import PATIENCE, agent
from tests.system.settings import kernel_settings
from tests.system.victims import ROOT, running

# (so that `latest` is one of them, whoever else dies on this machine)
ONLY_THE_CRASHES = """
defaults: {capture: none}
rules: [{name: all, match: {comm: null_worker}, capture: full}]
watch: [{name: all, match: {comm: null_worker}, every: 10ms}]
trace: [{name: all, match: {comm: null_worker}}]
"""
SETTING_UP = {"make setup", "make demo"}  # not for the scratch store; run on their own below


def shown(document: str) -> list[str]:
    """The commands of one document, in its order."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    commands += re.findall(r"^    (coreward [^\n]*?)(?:  .*)?$", text, re.MULTILINE)
    return commands


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the documents speak of: `coreward` in the PATH, a store with a crash."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "bin").mkdir()
    command = folder / "bin" / "coreward"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m collector "$@"\n')
    command.chmod(0o755)
    (folder / "config").symlink_to(ROOT / "config")
    with agent(folder, config=ONLY_THE_CRASHES, metrics=True) as running_agent:
        for _ in range(2):
            with running("null_worker", cwd=folder) as victim:
                samples = running_agent.metric("coreward_watch_samples_total")
                while running_agent.metric("coreward_watch_samples_total") < samples + 10:
                    assert victim.process.poll() is None
                victim.go()
                victim.wait()
                identity = running_agent.wait_record(victim.pid)
                (folder / identity).mkdir()  # so that tests know the documents' ID
    yield folder


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Commands of the documents before: what they share, like doctor, is run once."""
    return set()


def first_record(folder: Path) -> str:
    """The one that no command of the README removes."""
    return min(
        (p for p in folder.iterdir() if re.fullmatch("[0-9a-f]{16}", p.name)),
        key=lambda path: path.stat().st_mtime_ns,
    ).name


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COREWARD_STORE": str(folder / "store"),
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("command", [c for c in shown("README.md") if c not in SETTING_UP])
def test_readme(workplace: Path, command: str) -> None:
    with running("null_worker", cwd=workplace) as alive:  # the documents' process 812
        done = run(re.sub(r"\b812\b", str(alive.pid), command), workplace)
    assert done.returncode == 0, done.stderr
    assert "coreward:" not in done.stderr  # gdb may warn of things of its own


@pytest.mark.parametrize(
    "document",
    [
        f"docs/{n}.md"
        for n in (
            *("armed", "bundles", "heap", "kubernetes", "operating", "policy", "record"),
            *("redaction", "runbook", "signatures", "snapshot", "trace", "watch"),
        )
    ],
)
def test_docs_show_commands_that_parse(workplace: Path, seen: set[str], document: str) -> None:
    # GIVEN commands with names that stand for something (FILE, PID)
    commands = shown(document)
    assert commands
    for command in commands:
        if command in seen:
            continue
        seen.add(command)
        real = command.replace("-o FILE", "-o file.core").replace("FILE", "config/default.yaml")
        with running("null_worker", cwd=workplace) as alive:
            real = re.sub(r"\bPID\b|(?<=--pid )\d+", str(alive.pid), real)
            real = re.sub(r"\bID\b", first_record(workplace), real)
            (workplace / "file.core").unlink(missing_ok=True)  # an earlier command's
            # THEN each does what is said, or has nothing to do
            done = run(real, workplace)
        assert done.returncode == 0, (command, done.stderr)


def test_make_demo_shows_three_deaths_and_puts_everything_back() -> None:
    # GIVEN the settings as they are
    with kernel_settings() as settings:
        before = settings.read("core_pattern")
        # WHEN the demo runs
        done = subprocess.run(
            ["make", "--no-print-directory", "demo"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        # THEN each death has its reason and its backtrace
        assert done.returncode == 0, done.stderr
        for part in (
            "SIGSEGV: wrote to address 0x0 in `count_request` (null_worker.c:16)",
            "SIGABRT: abort() called from `check_invariant` (heap_abort.c:13)",
            "killed by SIGKILL from `bash`",
            " in main+0x",
            # (how many is not its own affair: others die on this machine, too)
            'coreward_deaths_total{cause="killed",outcome="recorded",signal="SIGKILL"} ',
        ):
            assert part in done.stdout
        # AND nothing stays behind
        assert settings.read("core_pattern") == before
        assert not list(Path("/sys/fs/bpf").glob("coreward-demo-*"))
