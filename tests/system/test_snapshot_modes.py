"""`coreward snapshot` in each of its modes: what it leaves in the store or in a file, and what the
other verbs make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.cli import main
from collector.elfcore.reader import CoreFile
from collector.model import Capture, Cause, Outcome, Record, SnapshotFacts
from collector.snapshot.inject import Injector
from tests.system.live_targets import Target, live_target
from tests.system.needs import needs
from tests.system.snapshots import backtraces, coreward, done, executable_of

ROLLING = ("--mode", "threads", "--fpu")
PLACES = {"main", "block_in_futex", "block_in_nanosleep", "block_in_epoll"}


class Expected(msgspec.Struct, frozen=True):
    """What a way to take a snapshot says of itself."""

    mode: str
    methods: tuple[str, ...]
    why: str
    capture: Capture
    consistent: bool
    paused: bool  # the process as a whole
    held: bool  # any thread


WAYS = {
    ("--mode", "threads"): Expected(
        "threads", ("iterator",), "without stopping", Capture.STACKS, False, False, False
    ),
    ROLLING: Expected("threads", ("rolling",), "FPU state", Capture.STACKS, False, False, True),
    ("--mode", "nonstop"): Expected(
        "nonstop", ("rolling",), "while the process goes on", Capture.FULL, False, False, True
    ),
    ("--mode", "full-stop"): Expected(
        "full-stop", ("fork", "pre-copy"), "", Capture.FULL, True, True, True
    ),
    ("--no-inject",): Expected(
        "full-stop", ("copy",), "nothing may be injected", Capture.FULL, True, True, True
    ),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process whose three threads wait in different calls; it counts what disturbs them."""
    folder = tmp_path_factory.mktemp("target")
    with live_target(folder, "memory:1", "futex:1", "nanosleep:1", "epoll:1") as target:
        yield target


def check_facts(facts: SnapshotFacts, expected: Expected) -> None:
    assert (facts.mode, facts.consistent) == (expected.mode, expected.consistent)
    assert facts.method in expected.methods
    assert expected.why in facts.why
    assert (facts.pause_ms is not None, facts.worst_ms is not None) == (
        expected.paused,
        expected.held,
    )
    assert facts.unstopped == ()
    assert facts.not_of_instant == ()  # its only shared memory is a file, which no core holds


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_into_the_store(
    way: tuple[str, ...],
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = WAYS[way]
    before = target.state()
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))

    # WHEN a snapshot is taken
    took = done(coreward("snapshot", target.pid, *way, "--json"))

    # THEN its record says what it is of, how it was taken, and where the main thread was
    record = msgspec.json.decode(took.stdout, type=Record)
    assert record.snapshot is not None and record.frames is not None
    assert (record.pid, record.tid, record.comm) == (target.pid, target.pid, "live_target")
    assert (record.cause, record.signal, record.threads) == (Cause.SNAPSHOT, None, 4)
    assert (record.capture, record.outcome) == (expected.capture, Outcome.COMPLETE)
    assert record.reason is not None
    assert record.reason.startswith(f"snapshot, {expected.mode} by {record.snapshot.method}: ")
    assert record.lost == {}
    check_facts(record.snapshot, expected)
    assert "main" in [frame.function for frame in record.frames]

    # AND the verbs for deaths take it as one
    def verb(*words: str) -> str:
        status = main(words)
        out, err = capfd.readouterr()
        assert (status, err) == (0, "")
        return out

    assert record.id[:8] in verb("list") and "snapshot" in verb("list")
    info = verb("info", record.id)
    assert f"Snapshot {record.id}" in info
    assert f"method        {record.snapshot.method}: {record.snapshot.why}\n" in info
    assert "in main+" in verb("bt", record.id)
    every = verb("bt", "--all", record.id)
    assert {name for name in PLACES if f" in {name}+" in every} == PLACES
    # (gdb warns of what it does not like about the kernel's cores as well)
    assert main(("debug", record.id, "--", "-batch", "-ex", "thread apply all bt")) == 0
    out, _ = capfd.readouterr()
    assert set(re.findall(r" in (main|block_in_\w+) \(", out)) == PLACES

    # AND the process has noticed nothing
    assert target.changed(before) == {}


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_into_a_file(way: tuple[str, ...], target: Target, tmp_path: Path) -> None:
    expected = WAYS[way]
    file = tmp_path / "core"

    # WHEN a snapshot goes to a file
    took = done(coreward("snapshot", target.pid, *way, "-o", file))

    # THEN the core's own note says how it was taken, and so does the command
    with CoreFile(file) as core:
        note = core.coreward_note
    assert note is not None
    assert (note.capture, note.consistent) == (expected.capture.value, expected.consistent)
    assert (note.record, note.truncated) == ("", False)
    assert note.text.startswith(f"snapshot, {expected.mode} by ")
    assert expected.why in note.text
    assert took.stderr.startswith(f"process {target.pid}: snapshot, {expected.mode} by ")
    if expected.paused:
        assert re.search(r"the process stood for \d+\.\d+ ms", took.stderr)

    # AND gdb sees each thread where it is
    stacks = backtraces(file, executable_of(target.pid))
    assert set(re.findall(r" in (main|block_in_\w+) \(", "\n".join(stacks.values()))) == PLACES
    assert len(stacks) == 4


def test_captures(target: Target, tmp_path: Path) -> None:
    # GIVEN a core of everything
    full = tmp_path / "full"
    done(coreward("snapshot", target.pid, "-o", full))
    expected = backtraces(full, executable_of(target.pid))

    # THEN one of the stacks alone shows the same in gdb, from less
    stacks = tmp_path / "stacks"
    done(coreward("snapshot", target.pid, "--capture", "stacks", "-o", stacks))
    assert backtraces(stacks, executable_of(target.pid)) == expected
    assert stacks.stat().st_blocks < full.stat().st_blocks
    # AND one of the threads alone has the same registers, and no memory
    threads = tmp_path / "threads"
    done(coreward("snapshot", target.pid, "--capture", "threads", "-o", threads))
    with CoreFile(threads) as small, CoreFile(full) as large:
        assert {t.tid for t in small.threads} == {t.tid for t in large.threads}
        assert [p for p in small.segments if p.segment.filesz] == []


@pytest.mark.parametrize(
    ("mode", "megabytes", "taken"),
    [
        ("auto", "100", "nonstop by rolling: for a full stop it would stand for long: no fork: "),
        ("auto", "8", "full-stop by copy: no fork: "),
        ("full-stop", "100", "full-stop by copy: no fork: "),
    ],
)
def test_a_long_copy_is_made_only_when_asked_for(
    tmp_path: Path, mode: str, megabytes: str, taken: str
) -> None:
    # GIVEN a process that nothing can be injected into: somebody else does already
    with live_target(tmp_path, f"memory:{megabytes}", "futex:1") as target, Injector(target.pid):
        command = ("snapshot", target.pid, "--mode", mode, "-o", tmp_path / "core")
        said = done(coreward(*command)).stderr
    # THEN a large one is not made to stand still, unless a full stop was asked for by name
    assert said.startswith(f"process {target.pid}: snapshot, {taken}")
    assert "another program is injecting" in said


@needs("pre-copy")
def test_a_process_of_huge_pages_is_forked(tmp_path: Path) -> None:
    # GIVEN memory that is a little too large to be forked in small pages, as far as the machine
    # has huge ones for it: a tenth is enough
    with live_target(tmp_path, "thp:200") as target:
        said = done(coreward("snapshot", target.pid, "-o", tmp_path / "core")).stderr
    # THEN no pre-copy breaks them up
    assert "full-stop by fork: " in said
    assert "% of it in huge pages: a fork takes about " in said
