"""What goes wrong around the agent: it is killed, the disk is full, everything dies at once.

Whatever happens, no process hangs, no core is visible that is not whole, and nothing is uncounted.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, deaths_of
from tests.system.needs import by_socket
from tests.system.scratch import tmpfs
from tests.system.victims import Victim, build, running

UNLIMITED = "defaults: {limit: none}"
MANY = 12  # crashes at once
# A process must be gone 100 ms after its agent; the rest is for a machine that is busy otherwise.
GONE_S = 3.0
BACKENDS = (by_socket("socket"), "pipe")
KILLS = 12  # of the agent, for each way of hand-off; `python -m bench` has a longer run


def crash(victim: Victim) -> None:
    victim.go()
    victim.wait()


def whole_death(one: RunningAgent, folder: Path) -> dict[str, Any]:
    """The record of a crash that nothing disturbs."""
    with running("null_main", cwd=folder) as victim:
        crash(victim)
    return one.record(victim.pid)


def outcome(record: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    return record["capture"], record["outcome"], record["lost"]


# ---- the agent is killed


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_agent_is_killed_at_any_moment(backend: str, tmp_path: Path) -> None:
    # GIVEN an agent, and three programs at a time that crash, and one that is killed
    chance = random.Random(backend)
    dead: list[int] = []
    late: list[int] = []
    with agent(tmp_path, config=UNLIMITED, backend=backend) as one:
        for number in range(KILLS):
            with contextlib.ExitStack() as stack:
                victims = [
                    stack.enter_context(running("null_main", cwd=tmp_path)) for _ in range(5)
                ]
                *crashing, killed, after = victims
                for victim in crashing:
                    victim.go()
                os.kill(killed.pid, signal.SIGKILL)
                # WHEN it is killed while it works on them, or on what the one before it has left
                select.select([], [], [], chance.choice((0.01, 0.1, 0.4)) * chance.random())
                one.process.kill()
                # THEN none of them hangs
                for victim in crashing:
                    assert victim.wait(GONE_S) == -signal.SIGSEGV
                assert killed.wait(GONE_S) == -signal.SIGKILL
                # AND neither does one that dies while there is no agent
                one.process.wait()
                after.go()
                assert after.wait(GONE_S) == -signal.SIGSEGV
                dead += [victim.pid for victim in victims]
                late.append(after.pid)
            one.restart()
            if number % 5 == 4:  # or more would be left over than the ring can hold
                one.wait_record(after.pid)
        last = whole_death(one, tmp_path)
        assert one.stop() == 0
        found = one.listed()
    # THEN every death is on record, once
    pids = Counter(death["pid"] for death in found)
    assert {pid: pids[pid] for pid in dead if pids[pid] != 1} == {}
    # AND has ended one way or the other
    deaths = [death for death in found if death["pid"] in dead]
    assert {death["outcome"] for death in deaths} <= {"complete", "recorded", "failed"}
    assert [death["id"] for death in deaths if not death["reason"]] == []
    # AND what died without an agent is marked as such
    records = [death for death in found if death["pid"] in late]
    assert {record["late"] for record in records} == {True}
    assert {record["lost"]["core"] for record in records} <= {
        "the agent was down",
        "the agent was killed",
    }
    # AND every core that can be seen is whole; nothing else was left behind
    assert outcome(last) == ("full", "complete", {})
    for death in deaths:
        folder = tmp_path / "store/crashes" / death["id"]
        for core in folder.glob("core*"):
            with CoreFile(core) as file:
                assert not file.truncated
                assert len(file.threads) == 1
        assert list(folder.glob(".tmp*")) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_settings_are_put_back(backend: str, tmp_path: Path) -> None:
    # GIVEN an agent that has taken over
    before = {"core_pattern": "core.%p", "core_pipe_limit": "3"}
    with agent(tmp_path, backend=backend, **before) as one:
        assert one.settings.read("core_pattern")[0] in "@|"
        # WHEN it is told to stop, THEN they are as before
        assert one.stop() == 0
        assert {name: one.settings.read(name) for name in before} == before
        # WHEN another one is killed
        one.restart()
        one.process.kill()
        one.process.wait()
        assert one.settings.read("core_pattern")[0] in "@|"
        # THEN the way back is a command
        said = one.doctor("--restore")
        assert {name: one.settings.read(name) for name in before} == before
        assert "kernel.core_pattern is 'core.%p' again\n" in said
        assert list(one.pins.iterdir()) != []
        one.doctor("--unpin")
        assert not one.pins.exists()


# ---- the disk is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The store's folder, on a file system of 160 MiB."""
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    with tmpfs(store, "160m"):
        yield store


def large_death(one: RunningAgent, folder: Path) -> dict[str, Any]:
    """The record of a process whose memory does not fit on the small disk."""
    with running("resident", "256", "2", "random", cwd=folder) as victim:
        crash(victim)
    return one.record(victim.pid)


def left_of(record: dict[str, Any], store: Path) -> list[Path]:
    """Unfinished files of one death; those of others on this machine may still be written."""
    return list((store / "crashes" / record["id"]).glob(".tmp*"))


def test_a_core_that_does_not_fit(small_disk: Path, tmp_path: Path) -> None:
    # GIVEN a disk that is smaller than the process
    config = "store: {min_free: 0B}\ndefaults: {limit: none, compress: none}"
    with agent(tmp_path, config=config) as one:
        # WHEN the process dies
        record = large_death(one, tmp_path)
        # THEN a smaller capture is kept, and the record says why
        assert outcome(record)[:2] == ("stacks", "reduced")
        why = r"it does not fit into the 15\d MiB free on the disk: stacks instead of full"
        assert re.fullmatch(why, record["lost"].pop("memory"))
        # (the backtraces of all threads had no room if they came while the disk was full)
        assert record["lost"].keys() <= {"threads"}
        assert [f["function"] for f in record["frames"]][:2] == ["crash", "main"]
        assert left_of(record, small_disk) == []
        # WHEN not even that fits
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with running("null_main", cwd=tmp_path) as victim:
            crash(victim)
        # THEN the agent says so and lives on
        one.wait_line("cannot be stored: .*; it is tried again")
        identity = one.wait_record(victim.pid)
        # AND when there is room again that death is on record, and all is as before
        filler.unlink()
        one.wait_line(f"record {identity} is stored now")
        assert one.info(identity)["signal_name"] == "SIGSEGV"
        whole = whole_death(one, tmp_path)
        assert outcome(whole) == ("full", "complete", {})
        assert left_of(whole, small_disk) == []


def test_an_agent_that_is_killed_while_the_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    # GIVEN a disk without room for a record
    filler = small_disk / "filler"
    with agent(tmp_path, config="store: {min_free: 0B}") as one:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        # WHEN a process dies, and then the agent
        with running("null_main", cwd=tmp_path) as victim:
            victim.process.kill()
            victim.process.wait()
        one.wait_line(rf"^\S+ \w+ pid {victim.pid} ")
        one.process.kill()
        one.process.wait()
        filler.unlink()
        one.restart()
        # THEN the next one has that death from BPF's ring
        record = one.record(victim.pid)
        assert record["signal_name"] == "SIGKILL" and record["late"]


def test_the_reserve_of_the_disk(small_disk: Path, tmp_path: Path) -> None:
    # GIVEN a reserve that policy keeps free
    config = "store: {min_free: 40MiB}\ndefaults: {limit: none, compress: none}"
    with agent(tmp_path, config=config) as one:
        # WHEN a process dies that would use it up
        record = large_death(one, tmp_path)
    # THEN its core ends there, is marked so, and can be read
    assert outcome(record)[:2] == ("full", "truncated")
    why = (
        r"the core ends where the disk's reserve begins: \d+ MiB were free, store.min_free is 40MiB"
    )
    assert re.match(why, record["lost"].pop("memory")) and not record["lost"]
    with CoreFile(small_disk / "crashes" / record["id"] / "core") as core:
        assert core.truncated
        assert len(core.threads) == 3
    assert free_bytes(small_disk) >= 40 << 20


def test_one_user_does_not_fill_the_disk_for_others(small_disk: Path, tmp_path: Path) -> None:
    # GIVEN a user whose processes crash until there is no room for one more
    config = "store: {min_free: 40MiB}\ndefaults: {limit: none, compress: none}"
    with agent(tmp_path, config=config) as one:
        crowd = [user_death(one, tmp_path, CROWDED)["id"] for _ in range(4)]
        crowded = [one.info(identity) for identity in crowd]
        # THEN his second one has made room for his last one: the first of its kind says most
        kept, gone = "complete", "removed"
        assert [record["outcome"] for record in crowded] == [kept, gone, kept, kept]
        why = f"removed to make room for a core of uid {CROWDED}"
        assert outcome(crowded[1]) == ("record", "removed", {"core": why})
        assert {record["owner"] for record in crowded} == {f"uid {CROWDED}"}
        # WHEN another user's process crashes THEN its core is whole
        other = user_death(one, tmp_path, OTHER)
        assert outcome(other) == ("full", "complete", {})
        # AND it is the first user's next one that is gone
        outcomes = [one.info(identity)["outcome"] for identity in crowd]
        assert outcomes == [kept, gone, gone, kept]
        # WHEN more of the first user's crash, two at a time
        with contextlib.ExitStack() as stack:
            pair = [stack.enter_context(large(tmp_path, CROWDED)) for _ in range(2)]
            for victim in pair:
                victim.go()
            for victim in pair:
                victim.wait()
        for victim in pair:
            one.wait_record(victim.pid)
        # THEN the other's core is still there, and the disk has its reserve
        core = small_disk / "crashes" / one.info(other["id"])["id"] / "core"
        with CoreFile(core) as file:
            assert not file.truncated
        assert free_bytes(small_disk) >= 40 << 20


CROWDED, OTHER = 65534, 65533  # uids


def large(folder: Path, uid: int) -> contextlib.AbstractContextManager[Victim]:
    """A process with so much memory that three such cores fit on the small disk."""
    return running("resident", "28", "2", "random", cwd=folder, uid=uid)


def user_death(one: RunningAgent, folder: Path, uid: int) -> dict[str, Any]:
    with large(folder, uid) as victim:
        crash(victim)
    return one.record(victim.pid)


def free_bytes(disk: Path) -> int:
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


# ---- many at a time


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_at_once(backend: str, tmp_path: Path) -> None:
    # GIVEN many programs, and time to wait for their cores: else they would be a crowd
    with (
        agent(tmp_path, config=UNLIMITED, backend=backend, patience="1m") as one,
        contextlib.ExitStack() as stack,
    ):
        victims = [stack.enter_context(running("null_main", cwd=tmp_path)) for _ in range(MANY)]
        # WHEN all of them crash
        for victim in victims:
            victim.go()
        for victim in victims:
            assert victim.wait() == -signal.SIGSEGV
        for victim in victims:
            one.wait_record(victim.pid)
        found = one.listed()
        pids = sorted(victim.pid for victim in victims)
        deaths = [death for death in found if death["pid"] in pids]
    # THEN each is on record, once and complete
    assert sorted(death["pid"] for death in deaths) == pids
    assert [outcome(death) for death in deaths] == [("full", "complete", {})] * MANY
    reason = "SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)"
    assert {death["reason"] for death in deaths} == {reason}


def test_a_crash_loop(tmp_path: Path) -> None:
    # GIVEN a limit on captures
    config = "defaults: {limit: {captures: 5, period: 1h, fallback: stacks}}"
    with agent(tmp_path, config=config, metrics=True) as one:
        # WHEN a program crashes twenty times a second for five seconds
        start = time.monotonic()
        pids = []
        for number in range(100):
            select.select([], [], [], max(0.0, start + number / 20 - time.monotonic()))
            process = subprocess.Popen([build("null_main"), "now"], stdout=subprocess.DEVNULL)
            assert process.wait(GONE_S) == -signal.SIGSEGV
            pids.append(process.pid)
        for pid in pids:
            one.wait_record(pid)
        # THEN every death is on record and counted, and few were captured
        counted, found = one.accounts()
        deaths = [death for death in found if death["pid"] in pids]
        assert sorted(death["pid"] for death in deaths) == sorted(pids)
        assert Counter((death["capture"], death["outcome"]) for death in deaths) == {
            ("full", "complete"): 5,
            ("stacks", "reduced"): 20,
            ("record", "reduced"): 75,
        }
        assert sum(deaths_of(counted).values()) == len(found)
        # AND the agent has stayed small
        status = Path(f"/proc/{one.process.pid}/status").read_text()
        assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 60 << 10


# ---- others mean ill


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_impostor(backend: str, tmp_path: Path) -> None:
    # GIVEN an agent that listens for crashes
    with agent(tmp_path, backend=backend, metrics=True) as one:
        name = {"socket": "core.sock", "pipe": "pipe.sock"}[backend]
        # WHEN something that is not the kernel connects
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.connect(str(tmp_path / "run" / name))
            with contextlib.suppress(OSError):
                impostor.send(b"1 1 11 0 0 1 1 -\n")
            one.wait_line("refused a connection to ")
            # THEN it is turned away and counted
            with contextlib.suppress(ConnectionResetError):
                assert impostor.recv(16) == b""
        assert one.metric('coreward_handoffs_refused_total{why="impostor"}') == 1
        # AND the agent goes on
        assert outcome(whole_death(one, tmp_path)) == ("full", "complete", {})


HOSTILE = b"ev\x1b[31mil\n\x07\xff\xfe`;"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def clean_output(one: RunningAgent, identity: str) -> None:
    """Every verb shows the death, in plain text only."""
    for words in (("list",), ("info", identity), ("bt", identity), ("list", "--json")):
        text = one.command(*words)  # UTF-8, or this raises
        assert text
        assert CONTROL.search(text) is None, words


def test_hostile_names(tmp_path: Path) -> None:
    # GIVEN a program whose path and name hold what a terminal obeys, and what is no UTF-8
    folder = os.fsencode(tmp_path) + b"/" + HOSTILE + "\u202e".encode()
    os.mkdir(folder)  # noqa: PTH102  (bytes)
    program = Path(os.fsdecode(folder + b"/" + HOSTILE))
    shutil.copy(build("null_main"), program)
    with agent(tmp_path, metrics=True) as one:
        # WHEN it crashes
        with running("null_main", "\x1b]0;title\x07", "\udcff\n", cwd=tmp_path, file=program) as v:
            crash(v)
        record = one.record(v.pid)
        # THEN it is on record with the bytes of its name
        assert outcome(record) == ("full", "complete", {})
        assert record["comm"] == "ev\x1b[31mil\n\x07\\xff\\xfe`;"
        assert record["reason"] == "SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)"
        # AND no terminal is told more than text
        clean_output(one, record["id"])
        assert [line for line in one.lines if CONTROL.search(line)] == []
        # AND the metrics are plain
        sample = 'coreward_deaths_total{cause="signal",outcome="complete",signal="SIGSEGV"}'
        assert one.metric(sample) >= 1  # others may be dying on this machine, too


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    # GIVEN a program more than 4,096 bytes below the root
    name = "d" * 250
    enter = f"import os; [(os.mkdir({name!r}), os.chdir({name!r})) for _ in range(17)]"
    run = f"shutil.copy({str(build('null_main'))!r}, 'deep'); os.execv('./deep', ['deep'])"
    with agent(tmp_path) as one:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import shutil; {enter}; {run}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            bufsize=0,
        )
        victim = Victim(process)
        victim.wait_ready()
        # WHEN it crashes
        crash(victim)
        record = one.record(victim.pid)
        clean_output(one, record["id"])
    # THEN it is on record, without a path that nobody could use
    assert (record["comm"], record["exe"]) == ("deep", None)
    assert record["lost"]["exe"] == "its path could not be read"
    assert (record["capture"], record["outcome"]) == ("full", "complete")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def test_a_core_that_was_cut_off_in_the_store(tmp_path: Path) -> None:
    # GIVEN a core that something has cut to half its size
    with agent(tmp_path) as one:
        record = whole_death(one, tmp_path)
        core = one.store / "crashes" / record["id"] / record["core"]
        os.truncate(core, core.stat().st_size // 2)
        # THEN the verbs that do not need it work as before
        clean_output(one, record["id"])
        # AND the one that does says so in a line
        done = one.attempt("core", record["id"], "-o", str(tmp_path / "out"))
        assert done.returncode == 1
        assert re.fullmatch(r"coreward: .+\n", done.stderr)
        assert not (tmp_path / "out").exists()
