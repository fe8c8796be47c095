"""The flight recorder: what a record tells of the minutes before a death, and health triggers."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import COMMAND, RunningAgent, agent, with_routine
from tests.system.memory_cgroups import has_pressure, memory_cgroup, unified_cgroup
from tests.system.recorders import KEEP, WATCH, recorder_of, sampled, until
from tests.system.victims import PATIENCE, ROOT, build, running, wish

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def watched_count(running: RunningAgent) -> float:
    return running.metric("coreward_watched_processes")


def gdb(core: Path) -> str:
    command = ["gdb", "-nx", "-batch", "-ex", "thread apply all bt", str(build("watched"))]
    done = subprocess.run([*command, str(core)], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=WATCH, backend="none", metrics=True) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


@pytest.fixture(scope="module")
def crashed(watching: RunningAgent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a watched process that crashed."""
    with running("watched", cwd=tmp_path_factory.mktemp("crashed")) as victim:
        sampled(watching)
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
        return watching.record(victim.pid)


def test_a_crash_record_has_the_last_samples(
    watching: RunningAgent, crashed: dict[str, Any]
) -> None:
    # THEN its record says so, and where each thread was
    assert crashed["samples"].items() >= {"count": 25, "rule": "service"}.items()
    assert crashed["samples"]["seconds"] > 0.4
    history = crashed["history"]
    # Where it was most of the time: the first samples may be from before it was ready
    seen = sorted(
        (t["samples"], t["name"], n) for n, p in enumerate(history["places"]) for t in p["threads"]
    )
    names = {name: history["places"][number] for _, name, number in seen}
    assert set(names) == {"watched", "waiter", "ticker"}
    where = {
        name: [history["frames"][number]["function"] for number in place["frames"]]
        for name, place in names.items()
    }
    assert "wait_for_lock" in where["waiter"]
    assert "tick" in where["ticker"]
    assert "main" in where["watched"]
    assert names["waiter"]["waits_in"] == "futex"
    # AND people are shown the same
    shown = watching.command("info", crashed["id"])
    assert "Before it died\n" in shown
    assert re.search(r"sleeping .*\d+/\d+ .* waiter +futex .*< wait_for_lock", shown)


@pytest.mark.parametrize("number", ["-1", "-3", "1"])
def test_a_core_of_a_sample(
    watching: RunningAgent, crashed: dict[str, Any], tmp_path: Path, number: str
) -> None:
    core = tmp_path / "sample.core"
    watching.command("core", crashed["id"], "--sample", number, "-o", str(core))
    # THEN a debugger shows all three threads at that moment, and no other
    shown = gdb(core)
    assert len(re.findall(r"^Thread \d", shown, re.MULTILINE)) == 3
    for function in ("wait_for_lock", "tick", "main"):
        assert re.search(rf"^#\d+ .* {function} \(", shown, re.MULTILINE), shown
    # AND so do elfutils
    done = subprocess.run(
        ["eu-stack", "--core", str(core), "-e", str(build("watched"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "wait_for_lock" in done.stdout, done
    # AND a pipe gets the same bytes
    command = ["core", "--store", str(watching.store), crashed["id"], "--sample", number]
    piped = subprocess.run(
        [*watching.process.args[:3], *command],  # type: ignore[index]
        capture_output=True,
        check=True,
    )
    assert piped.stdout == core.read_bytes()


def test_a_sample_that_does_not_exist(watching: RunningAgent, crashed: dict[str, Any]) -> None:
    for number in ("0", "26", "-26"):
        done = watching.attempt("core", crashed["id"], "--sample", number, "-o", "/nonexistent/x")
        assert done.returncode != 0
        assert done.stderr == (
            f"coreward: there is no sample {number}: they are 1 to 25, or -25 to -1\n"
        )


def test_samples_that_are_damaged(watching: RunningAgent, crashed: dict[str, Any]) -> None:
    # GIVEN a file of samples that was cut off, or is no such file
    file = watching.store / "crashes" / crashed["id"] / "samples.zst"
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"\x28\xb5\x2f\xfd nonsense", os.urandom(4096)):
        file.write_bytes(data)
        # THEN the verbs that need it say which it is
        for verb in (["info"], ["core", "--sample", "-1"]):
            done = watching.attempt(verb[0], crashed["id"], *verb[1:])
            assert done.returncode != 0
            assert str(file) in done.stderr
            assert "Traceback" not in done.stderr
    file.write_bytes(whole)


def test_a_killed_process_leaves_its_samples(watching: RunningAgent, tmp_path: Path) -> None:
    with running("watched", cwd=tmp_path) as victim:
        sampled(watching)
        victim.process.kill()
        victim.wait()
        record = watching.record(victim.pid)
    assert record["cause"] == "killed"
    assert record["samples"]["count"] == KEEP


def test_others_have_none(watching: RunningAgent, tmp_path: Path) -> None:
    with running("null_main", cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = watching.record(victim.pid)
    assert record["samples"] is None
    assert "samples" not in record["lost"]
    done = watching.attempt("core", record["id"], "--sample", "-1")
    assert done.returncode != 0
    assert "has no samples: no `watch` rule of the policy named it" in done.stderr


def test_a_hostile_name(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a watched process whose name holds an escape sequence
    program = Path(shutil.copy(build("watched"), tmp_path / "watched\x1b[31m\nx"))
    with running("watched", cwd=tmp_path, file=program) as victim:
        sampled(watching)
        victim.go()
        victim.wait()
        record = watching.record(victim.pid)
    assert record["samples"]["count"] == KEEP
    assert "\x1b" not in watching.command("info", record["id"])


def test_a_process_without_its_main_thread(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a watched process whose main() has ended by pthread_exit(3)
    program = Path(shutil.copy(build("probe_leaderless"), tmp_path / "watched_one"))
    with running("probe_leaderless", cwd=tmp_path, file=program) as victim:
        sampled(watching)
        # WHEN it is killed
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        record = watching.record(victim.pid)
    # THEN its samples tell where the thread was that went on
    assert record["samples"]["count"] == KEEP
    assert "survivor" in watching.command("info", record["id"])


def test_a_killed_recorder_is_replaced(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a flight recorder that is killed
    killed = recorder_of(watching)
    os.kill(killed, signal.SIGKILL)
    watching.wait_line("the flight recorder ended with status -9")
    with running("watched", cwd=tmp_path) as victim:
        # WHEN another has taken its place
        sampled(watching)
        assert recorder_of(watching) != killed
        victim.go()
        victim.wait()
        # THEN it does the same work
        assert watching.record(victim.pid)["samples"]["count"] == KEEP


def test_a_process_that_keeps_its_readers_waiting(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN two watched processes, and then a third, which lets nobody read its stack
    with (
        running("watched", cwd=tmp_path) as victim,
        running("watched", cwd=tmp_path) as killed,
    ):
        sampled(watching, 2)
        recorder = recorder_of(watching)
        with running("waiting_stack", "now", cwd=tmp_path) as waiting:
            # WHEN the recorder has given that one up
            watching.wait_line(f"process {waiting.pid} keeps its readers waiting")
            killed.process.kill()
            killed.wait()
            # THEN it is still looked at, but for its stack
            sampled(watching, 2)
            waiting.process.kill()
            waiting.wait()
            record = watching.record(waiting.pid)
            assert record["samples"]["count"] == KEEP
            # AND the others have kept their samples, are sampled on, and have them when they die
            assert recorder_of(watching) == recorder
            assert watching.record(killed.pid)["samples"]["count"] == KEEP
            sampled(watching)
            victim.go()
            victim.wait()
            assert watching.record(victim.pid)["samples"]["count"] == KEEP
            # AND so has what is started later
            with running("watched", cwd=tmp_path) as later:
                sampled(watching)
                later.go()
                later.wait()
                assert watching.record(later.pid)["samples"]["count"] == KEEP


# ---- triggers: an agent of their own, as only one may run at a time, each has its own rules

TRIGGERS = """
defaults: {limit: none}
recorder: {memory: 4MiB}
watch:
  - name: service
    match: {comm: watched}
    every: 20ms
    keep: 5
    memory: 3MiB
    triggers:
      - {name: hung, blocked: 300ms, threads: [hung]}
      - {name: still, no-progress: 300ms, mode: nonstop}
      - {name: stuck, uninterruptible: 300ms}
      - {name: leak, descriptors: 150}
      - {name: fat, resident: 32MiB, for: 100ms, mode: full-stop, capture: stacks}
      - {name: hot, cpu: 10%, for: 300ms}
      - {name: full, memory: 75%, mode: full-stop, capture: full}
  - name: squeezed
    match: {comm: squeezed}
    every: 20ms
    memory: 1MiB
    triggers:
      - {name: slow, pressure: 1%, mode: nonstop}
      - {name: high, memory-high: 1}
"""


@pytest.fixture(scope="module")
def acting(
    watching: RunningAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    """The same agent under other rules, which it reloads."""
    file = Path(watching.arguments[watching.arguments.index("--config") + 1])
    before = file.read_text()
    reload(watching, file, before.replace(with_routine(WATCH), with_routine(TRIGGERS)))
    yield watching
    reload(watching, file, before)


def reload(running: RunningAgent, file: Path, config: str) -> None:
    """Give the agent another configuration."""
    file.write_text(config)
    running.process.send_signal(signal.SIGHUP)
    running.wait_line("is in force")


@pytest.mark.parametrize(
    ("what", "trigger", "why", "mode"),
    [
        ("h", "hung", r"thread `hung` \(\d+\) has not run .*, in state S, in futex", "threads"),
        ("s", "still", r"none of its 3 threads has run for 0 s", "nonstop"),
        ("d", "stuck", r"thread `stuck` \(\d+\) has not run .*, in state D, in vfork", "threads"),
        ("f", "leak", r"20\d open descriptors, more than 150", "threads"),
        ("m", "fat", r"\d\d MiB resident, more than 32 for 0 s", "full-stop"),
        ("b", "hot", r"\d\.\d\d CPUs busy, more than 0.10 for 0 s", "threads"),
    ],
    ids=["blocked", "no-progress", "uninterruptible", "descriptors", "resident", "cpu"],
)
def test_a_trigger_takes_a_snapshot(
    acting: RunningAgent, tmp_path: Path, what: str, trigger: str, why: str, mode: str
) -> None:
    counted = f'coreward_triggers_total{{outcome="snapshot",rule="service",trigger="{trigger}"}}'
    limited = counted.replace("snapshot", "limited")
    # GIVEN a watched process in good health, WHEN it is so no more
    with running("watched", cwd=tmp_path) as victim:
        sampled(acting)
        wish(victim, what)
        # THEN there is a snapshot which says why it was taken; once in a period, and the rest
        # is counted
        if acting.metric(counted) == 0:
            line = acting.wait_line(rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} watched: {trigger}: ")
            record = acting.info(line.split()[1])
            assert re.match(rf"{trigger}: {why}$", record["trigger"])
            assert record["reason"].startswith(record["trigger"] + "; snapshot, ")
            assert (record["cause"], record["rule"]) == ("snapshot", "service")
            assert record["snapshot"]["mode"] == mode
            assert record["pid"] == victim.pid
            # AND the process goes on
            assert victim.process.poll() is None
        assert acting.metric(counted) == 1
    # WHEN another one falls ill of the same
    before = acting.metric(limited)
    with running("watched", cwd=tmp_path) as victim:
        sampled(acting)
        wish(victim, what)
        until(acting, limited, before + 1)
    assert acting.metric(counted) == 1


def test_a_snapshot_before_its_cgroup_is_full(acting: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a watched process in a memory cgroup, in which there is room
    with memory_cgroup(80 << 20) as group, running("watched", cwd=tmp_path) as victim:
        group.enter(victim.pid)
        sampled(acting)
        # WHEN it takes most of it
        wish(victim, "m")
        # THEN there is a snapshot before the kernel kills
        line = acting.wait_line(rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} watched: full: ")
        record = acting.info(line.split()[1])
        assert re.match(
            rf"full: [789]\d% of the memory of cgroup `{group.path}` is in use, "
            r"[67]\d of 80 MiB, more than 75%$",
            record["trigger"],
        )
        assert (record["cause"], record["rule"]) == ("snapshot", "service")
        # AND it tells by what: one large piece
        (profile,) = record["heap"]
        assert profile["mapped"] >= 64 << 20 and profile["mapped_count"] == 1
        assert victim.process.poll() is None
        victim.process.kill()
        victim.wait()


@pytest.mark.skipif(not has_pressure(), reason="a kernel without PSI, or no cgroup v2")
def test_a_snapshot_of_what_waits_for_memory(acting: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a watched process in a small memory cgroup
    program = Path(shutil.copy(build("watched"), tmp_path / "squeezed"))
    with (
        memory_cgroup(24 << 20) as group,
        unified_cgroup(group) as unified,
        running("watched", cwd=tmp_path, file=program) as victim,
    ):
        group.enter(victim.pid)
        unified.enter(victim.pid)
        if group.version == 1:  # THEN it is said at once what cannot be seen
            acting.wait_line(
                f"process {victim.pid}: trigger high cannot fire: no cgroup of it has memory.high"
            )
        # WHEN it needs more cache than there is
        wish(victim, "r")
        # THEN the pressure of its cgroup fires
        line = acting.wait_line(rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} squeezed: slow: ")
        record = acting.info(line.split()[1])
        assert re.match(
            rf"slow: tasks of cgroup `{unified.path}` waited for memory \d+% of the time, "
            r"more than 1%$",
            record["trigger"],
        )
        assert record["snapshot"]["mode"] == "nonstop"
        victim.process.kill()
        victim.wait()


def test_a_snapshot_of_what_is_beyond_memory_high(acting: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a watched process in a cgroup of v2, which the kernel slows down from 16 MiB on
    program = Path(shutil.copy(build("watched"), tmp_path / "squeezed"))
    with memory_cgroup(64 << 20) as group:
        if group.version == 1:
            pytest.skip("cgroup v1 has no memory.high")
        (group.path / "memory.high").write_text(str(16 << 20))
        with running("watched", cwd=tmp_path, file=program) as victim:
            group.enter(victim.pid)
            # WHEN it needs more
            wish(victim, "r")
            # THEN the events of its cgroup fire
            line = acting.wait_line(rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} squeezed: high: ")
            record = acting.info(line.split()[1])
            assert re.match(
                rf"high: cgroup `{group.path}` went beyond its memory.high \d+ times a second, "
                r"more than 1$",
                record["trigger"],
            )
            victim.process.kill()
            victim.wait()


def test_a_disk_without_room_gets_no_snapshots(acting: RunningAgent, tmp_path: Path) -> None:
    file = Path(acting.arguments[acting.arguments.index("--config") + 1])
    before = file.read_text()
    # GIVEN a disk with less than its reserve, and a trigger that has not fired in its period
    full = f"{before}\nstore: {{min_free: 1024TiB}}\n"
    reload(acting, file, full.replace("name: leak", "name: crammed"))
    try:
        with running("watched", cwd=tmp_path) as victim:
            sampled(acting)
            # WHEN a trigger fires
            wish(victim, "f")
            # THEN it says what is missing
            acting.wait_line(rf"crammed: process {victim.pid} .* no snapshot: .* is 1024TiB")
    finally:
        reload(acting, file, before)


def test_memory_for_samples_is_bounded(acting: RunningAgent, tmp_path: Path) -> None:
    # GIVEN room for one watched process
    with running("watched", cwd=tmp_path) as first:
        sampled(acting)
        refused = acting.metric("coreward_watch_refused_total")
        # WHEN there are two
        with running("watched", cwd=tmp_path) as second:
            until(acting, "coreward_watch_refused_total", refused + 1)
            # THEN the second one is left out, counted and named
            left_out = rf"watch: process {second.pid} is left out: recorder.memory is used up"
            acting.wait_line(left_out)
            assert watched_count(acting) == 1
            assert first.process.poll() is None
            # AND watched when there is room again
            first.process.kill()
            first.wait()
            sampled(acting)
            assert acting.metric("coreward_watch_refused_total") == refused + 1


def test_without_rules_there_is_no_recorder(acting: RunningAgent, tmp_path: Path) -> None:
    # GIVEN an agent that watches, WHEN its policy does not say so any more
    pidfd = os.pidfd_open(recorder_of(acting))
    file = Path(acting.arguments[acting.arguments.index("--config") + 1])
    before = file.read_text()
    reload(acting, file, before.partition("watch:")[0])
    # THEN the recorder ends, and deaths are recorded all the same
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    with running("watched", cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        assert acting.record(victim.pid)["samples"] is None
    # AND there is another when it is wanted again
    reload(acting, file, before)
    with running("watched", cwd=tmp_path) as victim:
        until(acting, "coreward_watched_processes", 1)


def test_a_killed_agent_leaves_no_recorder(tmp_path: Path, watching: RunningAgent) -> None:
    # GIVEN an agent with a flight recorder, WHEN the agent is killed
    recorder = recorder_of(watching)
    pidfd = os.pidfd_open(recorder)
    watching.process.kill()
    watching.restart()
    # THEN its recorder ends by itself, and the next agent has another
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    assert recorder_of(watching) != recorder


def test_the_verb_knows_who_is_watched(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(TRIGGERS)
    command = [*COMMAND, "policy", "test", str(config), "--comm"]

    def asked(*more: str) -> str:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout

    assert "watched      service: 5 samples, one every 0.02s" in asked("watched")
    assert "watched      no rule of `watch` matches" in asked("other")
    assert json.loads(asked("watched", "--json"))["watch"] == "service"
