"""What happens to deaths while nobody reads, and when the programs are replaced."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import ProbeError
from collector.model import Event, FatalSignal
from collector.probe import events, files, pins
from collector.probe.build import compile_object
from collector.probe.probe import open_probe
from tests.system.probe_support import (
    LOADERS,
    about,
    all_events,
    events_of,
    opened,
    pin_dir,
    reader_process,
)
from tests.system.victims import build, running

pytestmark = pytest.mark.alone  # it looks at all deaths
OTHER = {"core": "bcc", "bcc": "core"}
FIRST_USER, USERS = 20000, 100


@pytest.fixture
def directory() -> Iterator[Path]:
    path = pin_dir("pins")
    try:
        yield path
    finally:
        pins.remove_all(path)


def die(cwd: Path) -> int:
    """A process dies by SIGSEGV; returns its pid."""
    with running("null_main", cwd=cwd, core_limit=0) as victim:
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
    return victim.pid


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


@pytest.mark.parametrize("loader", LOADERS)
def test_deaths_while_the_reader_is_away_are_late(
    loader: str, directory: Path, tmp_path: Path
) -> None:
    # GIVEN a reader that has left its programs behind
    begun_s = time.time()
    with open_probe(loader, directory) as probe:
        before, since_s = probe.attached_ns, probe.since_s
    # WHEN a process dies, and a new reader comes
    died_s = time.time()
    pid = die(tmp_path)
    with open_probe(loader, directory) as probe:
        # THEN there is something to read at once, and it is older than the reader
        assert select.select([probe], [], [], 0)[0] == [probe]
        late = about(probe.drain(), pid)
        assert names(late) == ["FatalSignal", "Exit"]
        assert all(before < event.time_ns < probe.attached_ns for event in late)
        # AND it knows since when the programs see deaths
        assert begun_s - 0.1 <= since_s <= died_s  # file systems tell time in jiffies
        assert probe.since_s == since_s
        # AND what happens from now on is not
        current = events_of(probe, die(tmp_path))
        assert all(event.time_ns > probe.attached_ns for event in current)
        assert probe.loader == loader


@pytest.mark.parametrize("loader", LOADERS)
def test_programs_survive_their_reader_being_killed(
    loader: str, directory: Path, tmp_path: Path
) -> None:
    reader = reader_process(loader, directory)
    reader.kill()
    reader.wait()
    for pipe in (reader.stdin, reader.stdout):
        assert pipe is not None
        pipe.close()
    pid = die(tmp_path)
    with open_probe(loader, directory) as probe:
        assert names(about(probe.drain(), pid)) == ["FatalSignal", "Exit"]


@pytest.mark.parametrize("loader", LOADERS)
def test_another_build_takes_over_without_a_loss(
    loader: str, directory: Path, tmp_path: Path
) -> None:
    with open_probe(OTHER[loader], directory):
        pass
    pid = die(tmp_path)
    for _ in range(2):  # the first one is killed before it has put the death on record
        with open_probe(loader, directory) as probe:
            assert len(list(pins.builds(directory))) == 2
            assert select.select([probe], [], [], 0)[0] == [probe]
            found = probe.drain()
            assert names(about(found, pid)) == ["FatalSignal", "Exit"]
            assert about(probe.drain(), pid) == []
            assert names(events_of(probe, die(tmp_path))) == ["FatalSignal", "Exit"]
    with open_probe(loader, directory) as probe:
        for event in probe.drain():
            probe.recorded(event.who.key)
        assert len(list(pins.builds(directory))) == 1


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_not_on_record_comes_again(loader: str, directory: Path, tmp_path: Path) -> None:
    # GIVEN a reader that took two deaths, and was killed when one of them was on record
    with open_probe(loader, directory) as probe:
        first = events_of(probe, die(tmp_path))
        second = events_of(probe, die(tmp_path))
        probe.recorded(first[0].who.key)
    # THEN the next one is told of the other, and of what it was told before
    with open_probe(loader, directory) as probe:
        assert select.select([probe], [], [], 0)[0] == [probe]
        found = probe.drain()
        assert about(found, second[0].who.key.pid) == second
        assert probe.was_taken(second[0].who.key)
        last = die(tmp_path)
        since = all_events(probe)
        later = about(since, last)
        assert not probe.was_taken(later[0].who.key)
        for event in (*found, *since):  # others' as well: what comes after one comes again with it
            probe.recorded(event.who.key)
        assert probe.counters().overwritten == 0
    # AND of neither when they are on record
    with open_probe(loader, directory) as probe:
        found = probe.drain()
        assert [about(found, e[0].who.key.pid) for e in (first, second, later)] == [[], [], []]


@pytest.mark.parametrize("loader", LOADERS)
def test_who_killed_comes_again_too(loader: str, directory: Path, tmp_path: Path) -> None:
    # GIVEN a reader that took the death of a killed process, and did not put it on record
    with open_probe(loader, directory) as probe, running("wait_for_kill", cwd=tmp_path) as victim:
        subprocess.run(["/bin/kill", "-KILL", str(victim.pid)], check=True)
        victim.wait()
        before = events_of(probe, victim.pid)
    # THEN the next one is told of the killer as well, who is gone
    with open_probe(loader, directory) as probe:
        again = about(probe.drain(), victim.pid)
    assert again == before
    assert isinstance(again[0], FatalSignal) and again[0].sending is not None
    assert again[0].sending.arguments == b"/bin/kill\0-KILL\0%d\0" % victim.pid


def test_what_was_overwritten_is_counted(directory: Path, tmp_path: Path) -> None:
    # GIVEN a reader that took deaths, and is killed when the ring has been filled behind it
    storm = build("storm")
    with open_probe("core", directory) as probe:
        die(tmp_path)
        taken = {event.who.key for event in probe.drain()}
        # no owner may tell as much as the ring holds, so there are many
        for user in range(FIRST_USER, FIRST_USER + USERS):
            if probe.counters().tallied:
                break
            subprocess.run([storm, "1000"], user=user, check=True)
    # THEN the next one knows how many of them are lost, once
    for lost in (len(taken), 0):
        with open_probe("core", directory) as probe:
            assert probe.counters().overwritten == lost
            for event in probe.drain():
                probe.recorded(event.who.key)


def test_records_of_another_format_are_counted_as_lost(directory: Path, tmp_path: Path) -> None:
    # GIVEN a build whose records this version cannot read
    with open_probe("bcc", directory):
        (build,) = pins.builds(directory)
    (build / pins.FORMAT).unlink()
    die(tmp_path)
    # THEN taking over says how many were lost
    with open_probe("core", directory) as probe:
        assert probe.counters().undecodable >= 2


def test_what_a_killed_loader_left_is_replaced(directory: Path, tmp_path: Path) -> None:
    # GIVEN pins of a build that never became complete
    with open_probe("core", directory):
        (build,) = pins.builds(directory)
    (build / pins.COMPLETE).unlink()
    # THEN they are made anew
    with open_probe("core", directory) as probe:
        assert pins.is_complete(build)
        assert names(events_of(probe, die(tmp_path))) == ["FatalSignal", "Exit"]


def test_only_one_reader_at_a_time(directory: Path) -> None:
    with (
        open_probe("core", directory),
        pytest.raises(ProbeError, match=r"another process uses .*: only one agent can run"),
    ):
        open_probe("core", directory)


def test_unpinned_programs_are_gone(directory: Path, tmp_path: Path) -> None:
    with open_probe("core", directory) as probe:
        probe.unpin()
        assert not directory.exists()
    pid = die(tmp_path)
    with open_probe("core", directory) as probe:
        assert about(probe.drain(), pid) == []


@pytest.mark.parametrize(("loader", "threads"), [("core", "1"), ("core", "500"), ("bcc", "500")])
def test_a_waiting_reader_is_woken(loader: str, threads: str, tmp_path: Path) -> None:
    # The kernel wakes a reader only for a record before which all were read. Between a signal and
    # the exit of many threads the reader has time to read and to sleep again.
    with opened(loader, "woken") as probe:
        for _ in range(10):
            found: list[Event] = []
            with running("threads", threads, cwd=tmp_path) as victim:
                os.kill(victim.pid, signal.SIGKILL)
                while len(found) < 2:
                    assert select.select([probe], [], [], 10)[0] == [probe]
                    found += about(probe.drain(), victim.pid)
            assert names(found) == ["FatalSignal", "Exit"]


def test_auto_prefers_the_built_object(directory: Path) -> None:
    with open_probe("auto", directory) as probe:
        assert probe.loader == "core"


def test_a_missing_object_is_named(directory: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.bpf.o"
    with pytest.raises(ProbeError, match=rf"{missing} cannot be read .*build"):
        open_probe("core", directory, missing)


def test_a_damaged_object_is_refused(directory: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.bpf.o"
    damaged.write_bytes(b"\x7fELF but no more")
    with pytest.raises(ProbeError, match=r"damaged\.bpf\.o"):
        open_probe("core", directory, damaged)
    assert not list(directory.iterdir())


def test_an_object_of_another_format_is_refused(directory: Path, tmp_path: Path) -> None:
    # GIVEN programs that were built for another version of the reader
    for source in files.source_file().parent.iterdir():
        text = source.read_text()
        (tmp_path / source.name).write_text(
            text.replace(f"#define CW_FORMAT {events.FORMAT}\n", "#define CW_FORMAT 200\n")
        )
    stale = tmp_path / "stale.bpf.o"
    compile_object(tmp_path / files.source_file().name, files.object_file().parent, stale)
    with pytest.raises(ProbeError, match=rf"of format 200, this version reads {events.FORMAT}"):
        open_probe("core", directory, stale)
    assert not list(directory.iterdir())


def test_a_program_that_the_verifier_refuses_is_told_in_a_line(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a program that uses what may not be there
    for source in files.source_file().parent.iterdir():
        text = source.read_text().replace("if (sender && sender->target", "if (sender->target")
        (tmp_path / source.name).write_text(text)
    wrong = tmp_path / "wrong.bpf.o"
    compile_object(tmp_path / files.source_file().name, files.object_file().parent, wrong)
    # THEN the error says which, why and where
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ProbeError) as raised:
        open_probe("core", directory, wrong)
    line = (
        rf"core: the kernel refused {wrong}: Permission denied: program `\w+`: "
        r"R\d invalid mem access 'map_value_or_null' at `if \(sender->target_start_ns == .*`"
        r"( \(coreward\.bpf\.c:\d+\))?"  # newer kernels' logs have the place
    )
    assert re.fullmatch(line, str(raised.value))
    # AND the whole log is there for who asks
    assert "-- BEGIN PROG LOAD LOG --" in caplog.text


MEASURE = """
import re, sys
from pathlib import Path
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
import msgspec, subprocess, hashlib, ctypes, select, struct, tempfile
import collector.model
before = resident()
from collector.probe.probe import open_probe
probe = open_probe(sys.argv[1], Path(sys.argv[2]))
probe.drain()
print(resident() - before)
print("bcc" in sys.modules)
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_an_open_probe_is_small(loader: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, loader, str(directory)],
        check=True,
        capture_output=True,
        text=True,
    )
    kib, has_bcc = done.stdout.split()
    assert int(kib) < 10 << 10
    assert has_bcc == "False"
