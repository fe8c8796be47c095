"""`coreward sample` over processes whose threads stay where their names say."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from collector.errors import ProcessGone
from collector.introspect import Process, open_live
from collector.sample.ring import SampleRing
from collector.sample.sampler import Sampler
from tests.system.live_victims import rows, wait_blocked
from tests.system.test_introspect import settled
from tests.system.victims import PATIENCE, ROOT, Stuck, running, wait_until

NOBODY = 65534
COMMAND = [sys.executable, "-m", "collector", "sample"]
# Name of the thread: what it waits in, and its functions in sample_places.c.
PLACES = {
    "sample_places": ("read", ["main"]),
    "lock-1": ("futex", ["wait_for_lock", "enter"]),
    "lock-2": ("futex", ["wait_for_lock", "enter"]),
    "nap": ("clock_nanosleep", ["nap", "enter"]),
    "poll": ("poll", ["wait_for_input", "enter"]),
    "spin": (None, ["spin_inside", "spin", "enter"]),
}


def sampled(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def places_of(process: Mapping[str, Any], source: str) -> dict[str, tuple[str | None, list[str]]]:
    """By thread: what it waits in, and the functions of one source file on its stack."""
    found = {}
    for place in process["places"]:
        frames = [process["frames"][number] for number in place["frames"]]
        own = [f["function"] for f in frames if (f["file"] or "").endswith(source)]
        for thread in place["threads"]:
            found[thread["name"]] = place["waits_in"], own
    return found


def test_threads_are_where_they_say(tmp_path: Path) -> None:
    # GIVEN a process whose threads have come to where they stay
    with running("sample_places", cwd=tmp_path) as victim:
        with Process(victim.pid) as process:
            settled(process)
        # WHEN it is sampled for a while
        done = sampled(str(victim.pid), "--every", "100ms", "--for", "1s", "--json")
    # THEN each thread is in its place, by its own functions
    assert (done.returncode, done.stderr) == (0, "")
    (report,) = json.loads(done.stdout)["processes"]
    assert places_of(report, "sample_places.c") == PLACES
    # AND the two that wait for the lock are shown as one
    (locked,) = [p for p in report["places"] if p["waits_in"] == "futex"]
    assert [t["name"] for t in locked["threads"]] == ["lock-1", "lock-2"]
    # AND none of those that sleep has run, while the one that spins has used a CPU
    count = len(report["samples"])
    assert count > 5 and report["lost"] == {}
    for place in report["places"]:
        for thread in place["threads"]:
            assert (thread["samples"], thread["of"]) == (count, count)
            assert thread["longest_s"] == report["elapsed_s"]
            assert (thread["cpu_s"] > 0) == (thread["name"] == "spin")


def test_the_table_tells_it_at_a_glance(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        with Process(victim.pid) as process:
            settled(process)
        done = sampled(str(victim.pid), "--every", "50ms", "--for", "200ms")
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[1] == ["STATE", "CPU", "SEEN", "LONGEST", "THREADS", "WAITS IN", "WHERE"]
    assert (lines[2][0], lines[2][4:6]) == ("running", ["spin", "-"])
    assert lines[2][6].startswith("spin_inside < spin < enter")
    assert [lines[3][0], *lines[3][4:6]] == ["sleeping", "lock-# x2", "futex"]


def test_nobody_is_traced_stopped_or_woken(tmp_path: Path) -> None:
    # GIVEN threads that count how their blocked calls come back
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "1", "100", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = {tid: row for tid, row in rows(file).items() if row.name != "spin"}
        # WHEN the process is sampled 50 times
        done = sampled(str(victim.pid), "--every", "20ms", "--for", "1s", "--json")
        after = {tid: row for tid, row in rows(file).items() if row.name != "spin"}
    # THEN none has come back
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["processes"][0]["samples"][0]["threads"]) > 100
    assert after == before


@pytest.mark.parametrize(
    ("name", "function"),
    [("sample_idle.py", "PyEval_EvalCode"), ("sample_idle.js", "uv__io_poll")],
)
def test_interpreters(name: str, function: str, tmp_path: Path) -> None:
    with running(name, cwd=tmp_path) as victim:
        arguments = ("--every", "50ms", "--for", "200ms", "--stack", "64KiB", "--json")
        done = sampled(str(victim.pid), *arguments)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["processes"]
    assert report["lost"] == {}
    main = next(t for t in report["samples"][-1]["threads"] if t["tid"] == victim.pid)
    functions = [report["frames"][n]["function"] for n in report["stacks"][main["stack"]]]
    assert function in functions
    assert functions[-1] == "_start"


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command with a terminal as its standard error; yields it with our end of that."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        ) as process:
            try:
                yield process, ours
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


THIRD = r"sample ([3-9]|\d\d+) of 12001"  # or a later one: not each is shown on a busy machine


def wait_for(terminal: int, pattern: str) -> None:
    """Until this is shown."""
    seen = ""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, seen):
        if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise Stuck(f"{pattern!r} is not in {seen!r}")
        seen += os.read(terminal, 4096).decode()


def test_a_process_that_ends_is_reported(tmp_path: Path) -> None:
    # GIVEN two processes that are sampled for ten minutes
    with (
        running("sample_places", cwd=tmp_path) as one,
        running("sample_places", cwd=tmp_path) as two,
    ):
        pids = [str(one.pid), str(two.pid)]
        with on_a_terminal(*pids, "--every", "50ms", "--for", "10m", "--json") as (
            command,
            terminal,
        ):
            wait_for(terminal, THIRD)
            # WHEN one ends, and then the other
            for victim in (one, two):
                victim.process.kill()
                victim.wait()
            out, _ = command.communicate(timeout=PATIENCE)
    # THEN sampling is over, and tells both, with stacks, although nobody is left
    assert command.returncode == 0
    report = json.loads(out)
    assert [(p["process"]["key"][0], p["ended"]) for p in report["processes"]] == [
        (one.pid, True),
        (two.pid, True),
    ]
    assert not report["interrupted"]
    for process in report["processes"]:
        assert len(process["samples"]) >= 3
        found = places_of(process, "sample_places.c")
        assert found["sample_places"] == PLACES["sample_places"]


def test_ctrl_c_ends_sampling_and_shows_what_there_is(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        arguments = (str(victim.pid), "--every", "50ms", "--for", "10m")
        with on_a_terminal(*arguments) as (command, terminal):
            wait_for(terminal, f"{THIRD}: 6 threads")
            command.send_signal(signal.SIGINT)
            out, _ = command.communicate(timeout=PATIENCE)
    assert command.returncode == 0
    assert f"sample_places[{victim.pid}]" in out.splitlines()[0]
    assert "spin_inside < spin" in out


def test_another_user_gets_states_and_is_told_what_is_missing(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        done = sampled(str(victim.pid), "--every", "50ms", "--for", "100ms", "--json", user=NOBODY)
    (report,) = json.loads(done.stdout)["processes"]
    assert done.returncode == 0
    names = {thread["name"] for place in report["places"] for thread in place["threads"]}
    assert names == set(PLACES)
    assert report["stacks"] == []
    assert report["lost"] == {
        "registers": "they come from BPF: it needs root. Stacks of running threads are missing, "
        "others may end early",
        "stacks": f"process {victim.pid} cannot be read: it is user 0's, this is user {NOBODY}: "
        "run as root",
    }


def test_the_owner_has_stacks_of_sleepers_without_root(tmp_path: Path) -> None:
    with running("sample_places", cwd=Path("/"), uid=NOBODY) as victim:
        with Process(victim.pid) as process:
            settled(process)
        done = sampled(str(victim.pid), "--every", "50ms", "--for", "100ms", "--json", user=NOBODY)
    (report,) = json.loads(done.stdout)["processes"]
    found = places_of(report, "sample_places.c")
    assert {name: waits for name, (waits, _) in found.items()} == {
        name: waits for name, (waits, _) in PLACES.items()
    }
    # the functions of the C library that sleep keep no register that their callers need
    assert found["nap"][1][:1] == ["nap"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["2"], 1, "2 is a thread of the kernel: it has no registers"),
        (["1", "--every", "soon"], 2, "--every"),
        (["1", "--every", "1ms"], 2, "--every 1ms: at least 10ms"),
        (["1", "--stack", "1MiB"], 2, "--stack 1MiB: from 1 to 65536 bytes"),
        (["1", "--every", "10ms", "--for", "1d"], 2, "8640001 samples are too many"),
    ],
)
def test_what_can_not_be_is_refused(arguments: list[str], status: int, message: str) -> None:
    done = sampled(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


def test_a_stack_that_is_cut_is_said_to_be(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        arguments = (str(victim.pid), "--for", "50ms", "--every", "50ms", "--stack", "64")
        done = sampled(*arguments)
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        rf"coreward: {victim.pid}: lost: outermost frames: "
        r"\d+ of \d+ stacks are larger than 64 bytes \(--stack\)",
        line,
    )


def test_a_process_that_is_not_there_is_named(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
        alone = sampled(str(child.pid), "--for", "100ms", "--every", "50ms")
        with running("sample_places", cwd=tmp_path) as victim:
            arguments = (str(victim.pid), str(child.pid))
            beside = sampled(*arguments, "--for", "100ms", "--every", "50ms")
    message = f"coreward: there is no process {child.pid}\n"
    assert (alone.returncode, alone.stdout, alone.stderr) == (1, "", message)
    assert (beside.returncode, beside.stderr) == (0, message)
    assert "spin_inside" in beside.stdout


def test_a_process_without_its_main_thread_is_sampled(tmp_path: Path) -> None:
    with running("probe_leaderless", cwd=tmp_path) as victim:
        done = sampled(str(victim.pid), "--for", "100ms", "--every", "50ms")
    assert (done.returncode, done.stderr) == (0, "")
    assert "survivor" in done.stdout


def test_a_process_that_keeps_its_readers_waiting_is_named(tmp_path: Path) -> None:
    with (
        running("waiting_stack", "now", cwd=tmp_path) as waiting,
        running("sample_places", cwd=tmp_path) as victim,
    ):
        done = sampled(str(waiting.pid), str(victim.pid), "--for", "100ms", "--every", "50ms")
    assert done.returncode == 0
    assert f"process {waiting.pid} keeps its readers waiting" in done.stderr
    assert "spin_inside" in done.stdout


# ---- the sampler as the agent uses it


def functions(sampler: Sampler) -> list[list[str | None]]:
    """Of each sample the functions on the stack of its first thread."""
    found = sampler.backtraces().frames
    return [
        [f.function for f in found.get(sample.threads[0].stack or b"", ())]
        for sample in sampler.ring.samples
    ]


def test_stacks_of_a_program_outlive_its_exec(tmp_path: Path) -> None:
    # GIVEN a process that becomes another program between two samples
    command = ["/bin/sh", "-c", "read line; exec sleep 1000"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as child,
        Process(child.pid) as process,
        Sampler(process, SampleRing(10, 1 << 20)) as sampler,
    ):
        assert child.stdin is not None
        wait_until(lambda: process.threads()[0].state == "S", "the shell does not read")
        sampler.take()
        child.stdin.write(b"\n")
        child.stdin.flush()

        def sleeps() -> bool:
            thread = process.threads()[0]
            return bool(thread.syscall and thread.syscall.name == "clock_nanosleep")

        wait_until(sleeps, "no sleep")
        sampler.take()
        child.kill()
        assert process.wait(PATIENCE)
        # THEN both samples have the stack of the program of their time
        before, after = functions(sampler)
        assert before[0] in ("__GI___libc_read", "__libc_read")  # names of one function
        assert after[0] == "__clock_nanosleep"
        # AND there is no more to be had
        with pytest.raises(ProcessGone):
            sampler.take()


def test_code_that_is_loaded_later_is_known(tmp_path: Path) -> None:
    # GIVEN a sampled process that loads a library afterwards
    with (
        running("sample_places", "libm.so.6", cwd=tmp_path) as victim,
        open_live() as live,
        Process(victim.pid, probe=live) as process,
        Sampler(process, SampleRing(10, 1 << 20)) as sampler,
    ):
        settled(process)
        sampler.take()
        before = sampler.lost.copy()
        victim.go()
        assert victim.process.stdout is not None
        assert victim.process.stdout.readline() == b"loaded\n"
        wait_until(lambda: process.threads()[0].state == "S", "it does not read again")
        sampler.take()
        # THEN the samples of before and after have their stacks
        first, second = functions(sampler)
    assert before == sampler.lost == {}
    assert first[-3:] == second[-3:]
    assert "main" in first


def test_a_thread_in_uninterruptible_sleep_is_shown_with_the_kernels_function(
    tmp_path: Path,
) -> None:
    # GIVEN a process that waits for its vfork child
    with running("live_vfork", cwd=tmp_path) as victim:
        with Process(victim.pid) as process:
            wait_until(
                lambda: "D" in {t.state for t in process.threads()}, "no thread waits for a child"
            )
        done = sampled(str(victim.pid), "--every", "50ms", "--for", "100ms", "--json")
    (report,) = json.loads(done.stdout)["processes"]
    waiting = [t for t in report["samples"][-1]["threads"] if t["state"] == "D"]
    # THEN it is in vfork, and where the kernel waits for it
    assert {(t["syscall"], t["wait_channel"]) for t in waiting} == {("vfork", "kernel_clone")}
    assert "vfork (kernel_clone)" in {place["waits_in"] for place in report["places"]}
