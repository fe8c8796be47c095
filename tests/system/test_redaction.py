"""What is not to be on the disk is not there: not in any file of the store, compressed or not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.victims import PATIENCE, Victim, build, running

_REDACT = r"""{
  environment: ["*_TOKEN"], arguments: [--card], mappings: ["/dev/shm/keys*"],
  patterns: [{name: card, regex: '\b4000[0-9]{12}\b'}]}"""
_POLICY = f"""
defaults: {{capture: record, redact: {_REDACT}}}
rules:
- {{name: compressed, match: {{comm: secrets}}, capture: full, attributes: [PLANTED_TOKEN, PATH]}}
- {{name: plain, match: {{comm: secrets_plain}}, capture: full, compress: none}}
"""
_CARD, _NEXT, _TOKEN = "4000123412341234", "4000123412341235", "planted-3141592653"
_WORDS = "these words are not to be written"  # as the victim has them
_SECRETS = (_CARD, _NEXT, _TOKEN, _WORDS)


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=_POLICY) as started:
        yield started


def contents(path: Path) -> bytes:
    """As it is, and unpacked."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        stream = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        data += stream.read()
    return data


def holding(folder: Path, *secrets: str) -> list[tuple[str, str]]:
    """Files below a folder that have one of these words, compressed or not; and the word."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [(path.name, contents(path)) for path in files]
    return [(name, words) for name, data in found for words in secrets if words.encode() in data]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", _TOKEN)


def stop_one_that_explains(running_agent: RunningAgent) -> int | None:
    """The first process that explains a core for the agent, if there is one now: it is stopped."""
    for children in Path(f"/proc/{running_agent.process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in map(int, children.read_text().split()):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"\0collector.explain\0" in command:
                    os.kill(child, signal.SIGSTOP)
                    return child
    return None


def explained_slowly(running_agent: RunningAgent, folder: Path) -> tuple[Victim, int]:
    """One that died, and the process that explains that, which was stopped: the first that was not
    quicker than we looked."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with running("null_main", cwd=folder) as victim:
            victim.go()
            victim.wait()
        wanted = rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} "
        while (
            not any(re.search(wanted, line) for line in running_agent.lines)
            and time.monotonic() < deadline
        ):
            child = stop_one_that_explains(running_agent)
            if child is not None:
                return victim, child
    raise AssertionError("no process that explains was seen")


def test_nothing_of_memory_is_on_the_disk_while_it_is_explained(
    running_agent: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a policy that wants a record, and a word on the stack of what dies that it does not name
    build("null_main")
    monkeypatch.setenv("PLANTED", _WORDS)
    # WHEN its stack is being unwound
    victim, explainer = explained_slowly(running_agent, tmp_path)
    try:
        # THEN that has the word, and no file of the store has
        core = next(
            fd
            for fd in Path(f"/proc/{explainer}/fd").iterdir()
            if os.readlink(fd).startswith("/memfd:coreward-explain")
        )
        assert _WORDS.encode() in core.read_bytes()
        assert holding(running_agent.store, _WORDS) == []
    finally:
        os.kill(explainer, signal.SIGCONT)
    # AND there is a backtrace all the same
    record = running_agent.info(running_agent.wait_record(victim.pid))
    assert functions(record) == ["inner", "outer", "main"]
    assert (record["core"], record["lost"]) == (None, {})


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("comm", ["secrets", "secrets_plain"])
def test_no_secret_of_a_crash_is_in_the_store(
    running_agent: RunningAgent, tmp_path: Path, comm: str
) -> None:
    # GIVEN a process with secrets in its arguments, environment, heap, stack and mappings
    program = shutil.copy(build("secrets"), tmp_path / comm)
    with running("secrets", "--card", _CARD, cwd=tmp_path, file=program) as victim:
        if comm == "secrets":  # (and all of them are in a core that nothing is redacted of)
            bare = tmp_path / "bare"
            running_agent.command("snapshot", str(victim.pid), "--unredacted", "-o", str(bare))
            assert {words for _, words in holding(tmp_path, *_SECRETS)} == set(_SECRETS)
            bare.unlink()
        # WHEN it dies
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    # THEN none is in any file of the store
    assert holding(running_agent.store, *_SECRETS) == []
    plain = running_agent.core(record, tmp_path / "core")
    assert holding(tmp_path, *_SECRETS) == []
    # AND the record says what died of what, without them
    assert record["outcome"] == "complete"
    assert record["cmdline"][1:] == ["--card", "[redacted]"]
    assert record["abort_message"].count(f"card {'*' * 16} is no good") == 1
    assert functions(record) == ["die", "main"]
    if comm == "secrets":
        assert record["attributes"]["PLANTED_TOKEN"] == "[redacted]"
        assert record["attributes"]["PATH"] == os.environ["PATH"]
    # AND both say how often each rule was found; the core's own note by itself
    with CoreFile(plain) as core:
        assert core.notes.note is not None
        counted = core.notes.note.redacted
    assert set(counted) == {"arguments", "environment", "card", "mappings"}
    assert counted["mappings"] == 1
    assert all(record["redacted"][rule] >= count for rule, count in counted.items())
    # AND a debugger shows the rest
    assert "die" in running_agent.command("bt", record["id"], "--all")


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("mode", ["full-stop", "threads"])
def test_no_secret_of_a_snapshot_is_in_the_store(
    running_agent: RunningAgent, tmp_path: Path, mode: str
) -> None:
    with running("secrets", "--card", _CARD, cwd=tmp_path) as victim:
        record = running_agent.snapshot(victim.pid, *config(running_agent), "--mode", mode)
    assert holding(running_agent.store, *_SECRETS) == []
    assert record["cmdline"][1:] == ["--card", "[redacted]"]
    assert record["redacted"]["arguments"] >= 1
    assert "main" in functions(record)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("mode", ["full-stop", "nonstop"])
def test_no_secret_of_a_snapshot_is_in_a_file(
    running_agent: RunningAgent, tmp_path: Path, mode: str
) -> None:
    core = tmp_path / "core"
    with running("secrets", "--card", _CARD, cwd=tmp_path) as victim:
        where = (*config(running_agent), "--mode", mode, "-o", str(core))
        running_agent.command("snapshot", str(victim.pid), *where)
    assert holding(tmp_path, *_SECRETS) == []
    with CoreFile(core) as read:
        assert read.notes.note is not None
        assert set(read.notes.note.redacted) == {"arguments", "environment", "card", "mappings"}


def config(running_agent: RunningAgent) -> tuple[str, str]:
    """The option for a verb that is to go by the agent's policy."""
    at = running_agent.arguments.index("--config")
    return "--config", running_agent.arguments[at + 1]
