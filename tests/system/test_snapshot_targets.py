"""Snapshots of processes that are not easily traced: who may, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.elfcore.reader import CoreFile
from collector.model import Record, SnapshotFacts
from collector.snapshot.stop import Perturb
from collector.store.store import Store
from tests.system.live_targets import Target, live_target
from tests.system.live_victims import counters, states, tracers
from tests.system.snapshots import (
    COMMAND,
    NOBODY,
    backtraces,
    coreward,
    done,
    executable_of,
    nobodys_folder,
    refused,
)
from tests.system.victims import ROOT, build, descendants, running, wait_until

MODES = [("--mode", "threads"), ("--mode", "nonstop"), ("--mode", "full-stop"), ("--no-inject",)]


def facts_of(pid: int, file: Path, *words: str, user: int | None = None) -> SnapshotFacts:
    """Take a snapshot to a file, and say how it was done."""
    took = done(coreward("snapshot", pid, *words, "-o", file, "--json", user=user))
    return msgspec.json.decode(took.stdout, type=SnapshotFacts)


@contextlib.contextmanager
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    wait_until(lambda: set(states(process.pid).values()) == {"Z"}, "it does not end")
    yield process.pid
    process.wait()


@contextlib.contextmanager
def ended() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    process.wait()
    yield process.pid


@contextlib.contextmanager
def thread_of(folder: Path) -> Iterator[int]:
    with live_target(folder, "futex:1") as target:
        yield next(t for t in states(target.pid) if t != target.pid)


# --- who may --------------------------------------------------------------------------------------


def test_their_own_process_without_bpf() -> None:
    # GIVEN a process of a user without rights
    with nobodys_folder() as folder, running("sample_idle.py", cwd=folder, uid=NOBODY) as victim:
        methods = {}
        for way in MODES:
            # WHEN that user takes a snapshot
            facts = facts_of(victim.pid, folder / way[-1], *way, user=NOBODY)
            methods[way[-1]] = facts.method
            with CoreFile(folder / way[-1]) as core:
                assert len(core.threads) == 2
            stacks = backtraces(folder / way[-1], executable_of(victim.pid))
            assert " in Py_BytesMain (" in stacks[victim.pid]
    # THEN each mode works, threads held in turn where BPF would have told
    assert methods.pop("full-stop") in ("fork", "pre-copy")
    assert methods == {"threads": "rolling", "nonstop": "rolling", "--no-inject": "copy"}


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_roots_process_for_another_user(way: tuple[str, ...], tmp_path: Path) -> None:
    with live_target(tmp_path, "futex:1") as target, nobodys_folder() as folder:
        said = refused(coreward("snapshot", target.pid, *way, "-o", folder / "x", user=NOBODY))
        left = list(folder.iterdir())
    assert said == (
        f"process {target.pid} belongs to user 0 and this program runs as user {NOBODY}: "
        "be that user, or root"
    )
    assert left == []


def test_roots_store_for_another_user(tmp_path: Path) -> None:
    # GIVEN a store of root's, and a process of another user
    with Store(tmp_path / "store", create=True) as store:
        store_path = store.path
    with nobodys_folder() as folder, running("sample_idle.py", cwd=folder, uid=NOBODY) as victim:
        # WHEN that user wants a snapshot in it THEN it is said what would do
        said = refused(coreward("snapshot", "--store", store_path, victim.pid, user=NOBODY))
        assert said == (
            f"{store_path}: you may not write this store; `-o FILE` writes the core to a file of "
            "yours, `--store DIR` to a store of yours"
        )
        # AND both do
        facts_of(victim.pid, folder / "core", user=NOBODY)
        done(coreward("snapshot", "--store", folder / "own", victim.pid, user=NOBODY))
        assert len(list((folder / "own" / "crashes").iterdir())) == 1


def test_another_tracer_is_named(tmp_path: Path) -> None:
    # GIVEN a process that strace traces
    with live_target(tmp_path, "futex:1") as target:
        command = ["strace", "-f", "-o", "/dev/null", "-p", str(target.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
            wait_until(lambda: tracers(target.pid) == {strace.pid}, "strace does not trace it")
            # THEN a snapshot is refused by its name
            said = refused(coreward("snapshot", target.pid, "-o", tmp_path / "x"))
            strace.terminate()
    assert said == f"process {target.pid} is being traced by process {strace.pid} (strace) already"
    assert not (tmp_path / "x").exists()


def test_what_has_no_core(tmp_path: Path) -> None:
    def said(pid: int) -> str:
        return refused(coreward("snapshot", pid, "-o", tmp_path / "x"))

    assert said(2) == "process 2 (kthreadd) is a kernel thread, which has no memory of its own"
    with zombie() as pid:
        assert said(pid) == f"process {pid} (true) has ended and only waits for its parent (zombie)"
    with ended() as pid:
        assert said(pid) == f"there is no process {pid} in this pid namespace"
    assert said(0) == "there is no process 0 in this pid namespace"
    assert said(-1) == "there is no process -1 in this pid namespace"
    with thread_of(tmp_path) as tid:
        assert f"{tid} is a thread of process " in said(tid)
    # AND a shell that turns into the command asks for that itself
    own = ["sh", "-c", 'exec "$@" $$', "sh", *COMMAND, "snapshot", "-o", str(tmp_path / "x")]
    took = subprocess.run(own, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused(took).endswith(" is this program itself, which cannot stop itself")
    assert not (tmp_path / "x").exists()


# --- what becomes of them -------------------------------------------------------------------------


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_in_a_container(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process in pid and mount namespaces of its own, from a file that exists only there
    inside = tmp_path / "inside"
    inside.mkdir()
    with running("namespace", str(inside), str(build("null_main")), cwd=tmp_path) as victim:
        pid = list(descendants(victim.pid))[-1]
        # WHEN it is snapshot into the store
        took = coreward("snapshot", pid, *way, "--store", tmp_path / "store", "--json")
        record = msgspec.json.decode(done(took).stdout, type=Record)
        victim.go()
        victim.wait()
    # THEN it is known by its pid here, and its functions by their names
    assert (record.pid, record.ns_pid, record.comm) == (pid, 2, "null_main")
    assert record.lost == {}
    assert record.frames is not None
    assert "main" in [frame.function for frame in record.frames]
    # AND its core has the ids of the container
    core = tmp_path / "plain"
    done(coreward("core", record.id, "--store", tmp_path / "store", "-o", core))
    with CoreFile(core) as opened:
        assert [thread.tid for thread in opened.threads] == [2]
        assert opened.notes.psinfo is not None and opened.notes.psinfo.pid == 2


def undisturbed(target: Target, file: Path, *way: str) -> tuple[SnapshotFacts, int]:
    """Take a snapshot, which must leave the target as it was; also the threads in it."""
    before = target.state()
    facts = facts_of(target.pid, file, *way)
    assert target.changed(before) == {}
    with CoreFile(file) as core:
        return facts, len({thread.tid for thread in core.threads})


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
def test_a_saturated_java_heap(tmp_path: Path) -> None:
    # GIVEN a virtual machine whose heap is full, whose threads allocate and whose collector works
    with running("Churn", cwd=tmp_path) as victim:

        def progress() -> tuple[int, int]:
            victim.go()
            assert victim.process.stdout is not None
            replaced, wrong = victim.process.stdout.readline().split()
            return int(replaced), int(wrong)

        def named(prefix: str) -> set[int]:
            tasks = Path(f"/proc/{victim.pid}/task").iterdir()
            return {int(t.name) for t in tasks if (t / "comm").read_text().startswith(prefix)}

        wait_until(lambda: len(named("churn-")) == 4, "its threads have no names")
        threads = named("churn-") | named("VM Thread")
        for way in MODES:
            before, _ = progress()
            # WHEN it is snapshot in each way
            facts_of(victim.pid, tmp_path / "core", *way, "--force")
            with CoreFile(tmp_path / "core") as core:
                found = {thread.tid for thread in core.threads}
            # THEN all of its threads are in the core
            assert threads <= found, way
            # AND it goes on without an error
            wait_until(lambda before=before: progress()[0] > before, "it does not go on")
        assert progress()[1] == 0


def test_a_parent_in_vfork(tmp_path: Path) -> None:
    # GIVEN a thread that waits in vfork
    with running("live_vfork", cwd=tmp_path) as victim:
        wait_until(lambda: sorted(states(victim.pid).values()) == ["D", "S", "S"], "no vfork")
        (waiting,) = [tid for tid, state in states(victim.pid).items() if state == "D"]
        for way in MODES:
            # WHEN it is snapshot in each way, THEN that ends, with that thread in the core
            facts = facts_of(victim.pid, tmp_path / "core", *way, "--force")
            with CoreFile(tmp_path / "core") as core:
                assert waiting in {thread.tid for thread in core.threads}, way
            # AND says of it that it could not be stopped, where it should have been
            named = [text for text in facts.unstopped if text.startswith(f"thread {waiting}: ")]
            assert len(named) == (0 if way == ("--mode", "threads") else 1), (way, facts)
        victim.go()
        assert victim.wait() == 0


@pytest.mark.parametrize("way", [("--mode", "nonstop"), ("--mode", "full-stop"), ("--no-inject",)])
@pytest.mark.parametrize("perturb", list(Perturb))
def test_threads_that_would_get_eintr(
    way: tuple[str, ...], perturb: Perturb, tmp_path: Path
) -> None:
    # GIVEN a thread in epoll_wait, which a stop makes return EINTR, and one in futex, which not
    with live_target(tmp_path, "futex:1", "epoll:1", "memory:1") as target:
        facts = facts_of(target.pid, tmp_path / "core", *way, "--perturb", perturb.value)
        with CoreFile(tmp_path / "core") as core:
            assert len(core.threads) == 3
        # THEN it notices that only if it is let, and is not even stopped if that is forbidden
        interrupted = target.report.interrupted
    assert (interrupted > 0) == (perturb is Perturb.ALLOW)
    assert len(facts.unstopped) == (1 if perturb is Perturb.NEVER else 0), facts


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_with_a_seccomp_filter(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process that is killed if it forks
    with live_target(tmp_path, "memory:4", "futex:2", "spin:1", "seccomp") as target:
        # THEN a snapshot is no death of it
        facts, threads = undisturbed(target, tmp_path / "core", *way)
        assert (threads, facts.not_of_instant) == (4, ())
        assert target.goes_on() and target.report.broken == 0


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_a_thousand_threads(way: tuple[str, ...], tmp_path: Path) -> None:
    with live_target(tmp_path, "futex:400", "epoll:300", "nanosleep:300") as target:
        facts, threads = undisturbed(target, tmp_path / "core", *way)
    assert threads == 1001
    # a busy machine may not stop all of them in time
    assert {line.partition(": ")[2] for line in facts.unstopped} <= {
        "it did not stop in time; its registers are from BPF"
    }


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_threads_that_come_and_go(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process that creates threads all the time, and checks all that it does
    file = tmp_path / "counters"
    with running("live_busy", str(file), cwd=tmp_path) as victim:
        wait_until(lambda: counters(file).births > 0, "it creates no threads")
        # WHEN it is snapshot
        facts_of(victim.pid, tmp_path / "core", *way)
        # THEN it goes on with everything, and nothing went wrong
        then = counters(file)
        wait_until(
            lambda: all(now > was for now, was in zip(counters(file)[:4], then[:4], strict=True)),
            "it does not go on",
        )
        assert (counters(file).wrong, counters(file).eintr) == (0, 0)
        with CoreFile(tmp_path / "core") as core:
            assert victim.pid in {thread.tid for thread in core.threads}


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_stopped_by_sigstop(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process that stands by SIGSTOP
    with live_target(tmp_path, "memory:1", "futex:1", "spin:1") as target:
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: set(states(target.pid).values()) == {"T"}, "it does not stop")
        # WHEN it is snapshot
        facts_of(target.pid, tmp_path / "core", *way)
        with CoreFile(tmp_path / "core") as core:
            assert len(core.threads) == 3
        # THEN it still stands, and goes on when it is told to
        wait_until(lambda: set(states(target.pid).values()) == {"T"}, "it does not stand")
        os.kill(target.pid, signal.SIGCONT)
        assert target.goes_on() and target.report.broken == 0


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_without_its_main_thread(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process whose main() has ended by pthread_exit(3)
    with running("probe_leaderless", cwd=tmp_path) as victim:
        facts_of(victim.pid, tmp_path / "core", *way)
        survivor = next(t for t in states(victim.pid) if t != victim.pid)
    # THEN what goes on is in its core
    with CoreFile(tmp_path / "core") as core:
        assert [thread.tid for thread in core.threads] == [survivor]
    assert "in survivor (" in backtraces(tmp_path / "core", build("probe_leaderless"))[survivor]


@pytest.mark.parametrize("way", MODES, ids=" ".join)
def test_whose_memory_keeps_readers_waiting(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a thread whose stack nobody can read, nor fail to
    with running("waiting_stack", "now", cwd=tmp_path) as victim:
        wait_until(lambda: states(victim.pid)[victim.pid] == "S", "it does not sleep")
        # THEN a snapshot has the thread, without that
        facts = facts_of(victim.pid, tmp_path / "core", *way)
    with CoreFile(tmp_path / "core") as core:
        assert [thread.tid for thread in core.threads] == [victim.pid]
    assert ("keeps readers waiting" in facts.why) == (way == ("--mode", "threads"))


def test_killed_meanwhile(tmp_path: Path) -> None:
    # GIVEN a snapshot in the middle of a copy
    with live_target(tmp_path, "memory:64") as target:
        command = [*COMMAND, "snapshot", str(target.pid), "--no-inject", "-o", "-"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read(4) == b"\x7fELF"
            # WHEN the process is killed
            os.kill(target.pid, signal.SIGKILL)
            process.stdout.read()
            # THEN the command says so
            said = process.stderr.read().decode()
            assert process.wait() == 1
    why = f"process {target.pid} ended before all of its memory was read"
    assert said == f"coreward: {why}\n"
