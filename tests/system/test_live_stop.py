"""Stopping live processes: each kind of thread, and nothing that the process could notice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.types import Thread
from collector.errors import CaptureError
from collector.linux import procfs, ptrace
from collector.linux.ptrace import Stop, StopKind, run_as_tracer
from collector.probe.iterators import decode_threads
from collector.probe.probe import Probe
from collector.snapshot import tasks
from collector.snapshot.stop import DEADLINE, Pause, Perturb, StoppedProcess, Unstopped, Why
from tests.system.live_victims import (
    NOTICING,
    counters,
    read_line,
    rows,
    states,
    tracers,
    wait_blocked,
    wait_untraced,
)
from tests.system.needs import needs
from tests.system.probe_support import opened
from tests.system.victims import PATIENCE, ROOT, descendants, running, wait_until

STOPS = 20
RAX = 10  # in struct user_regs_struct
SYS_VFORK = 58
NOBODY = 65534


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with opened("core", "live") as found:
        yield found


def stop(
    pid: int,
    policy: Perturb = Perturb.TRANSPARENT,
    probe: Probe | None = None,
    *,
    deadline: float = PATIENCE,
) -> StoppedProcess:
    """Stop and release a process at once."""
    registers_of = probe.threads if probe else None

    def work() -> StoppedProcess:
        with StoppedProcess(pid, policy, deadline, registers_of=registers_of) as stopped:
            found = states(pid)
            assert {found[tid] for tid in stopped.tids} == {"t"}
        stopped.threads()
        return stopped

    return run_as_tracer(work)


def pause_of(stopped: StoppedProcess) -> Pause:
    assert stopped.pause is not None
    return stopped.pause


def test_no_system_call_notices(tmp_path: Path) -> None:
    # GIVEN threads that block in each kind of system call, and two that compute
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "2", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        assert {tid for tid, row in before.items() if row.other and row.name != "spin"} == set()
        everybody = {victim.pid, *before}
        # WHEN the process is stopped again and again
        for _ in range(STOPS):
            stopped = stop(victim.pid)
            # THEN all stood still each time
            assert set(stopped.tids) == everybody
            assert stopped.left_out == []
            wait_blocked(victim.pid, file)
        # AND no call came back, and those that compute went on
        after = rows(file)
        assert {r.name for tid, r in after.items() if r != before[tid]} == {"spin"}
        assert all(after[t].other > r.other for t, r in before.items() if r.name == "spin")
        # AND there were calls that would have: without the policy they all fail with EINTR
        assert {before[tid].name for tid in stopped.rewound} == NOTICING
        stop(victim.pid, Perturb.ALLOW)
        wait_until(
            lambda: {r.name for r in rows(file).values() if r.eintr} == NOTICING,
            "what fails with EINTR is not what was rewound",
        )
        wait_untraced(victim.pid)


def test_who_would_notice_may_be_left_alone(probe: Probe, tmp_path: Path) -> None:
    # GIVEN threads that block in each kind of system call
    file = tmp_path / "rows"
    with running("live_blocked", str(file), cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        expected = {t.tid: t for t in decode_threads(probe.threads(victim.pid))}
        # WHEN it is stopped under the policy that forbids to disturb them
        stopped = stop(victim.pid, Perturb.NEVER, probe)
        left_out = {other.tid: other for other in stopped.left_out}
        # THEN those that would notice ran on (and who receives without a timeout: that shows only
        # afterwards), and their registers are known from BPF
        alone = {before[tid].name for tid in left_out}
        assert alone == NOTICING | {"accept", "recv"}
        assert {other.why for other in left_out.values()} == {Why.PERTURB}
        assert {t: o.thread.regs if o.thread else None for t, o in left_out.items()} == {
            t: expected[t].regs for t in left_out
        }
        # AND all the others stood
        assert {*left_out, *stopped.tids} == {victim.pid, *before}
        assert len(stopped.threads()) == len(before) + 1
        assert rows(file) == before


def test_registers_are_those_that_bpf_reads(probe: Probe, tmp_path: Path) -> None:
    # GIVEN blocked threads, listed without stopping them
    file = tmp_path / "rows"
    with running("live_blocked", str(file), cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        listed = decode_threads(probe.threads(victim.pid))
        # WHEN they are stopped
        found = stop(victim.pid).threads()
    # THEN all is the same but rax, where the kernel says how a call is to go on, and the times
    # (the kernel lists them as they were born: not by number where pid_max lay between them)
    assert sorted(map(_comparable, found)) == sorted(map(_comparable, listed))


def _comparable(thread: Thread) -> tuple[object, ...]:
    t = thread
    general = (*t.regs[:RAX], *t.regs[RAX + 1 :])
    return t.tid, general, t.xstate, t.name, t.ppid, t.pgrp, t.sid, t.sigpend, t.sighold


def test_threads_are_born_all_the_time(tmp_path: Path) -> None:
    # GIVEN a process that creates and joins threads as fast as it can
    file = tmp_path / "counters"
    with running("live_busy", str(file), cwd=tmp_path) as victim:
        for _ in range(STOPS):
            before = counters(file)

            def work() -> tuple[bool, int, set[int]]:
                with StoppedProcess(victim.pid, deadline=PATIENCE) as stopped:
                    # WHEN it is stopped THEN nothing at all goes on
                    first = counters(file)
                    there = {t for t, state in states(victim.pid).items() if state not in "ZX"}
                    return counters(file) == first, len(stopped.left_out), there ^ {*stopped.tids}

            assert run_as_tracer(work) == (True, 0, set())
            # AND afterwards all of it does
            wait_until(
                lambda was=before: all(
                    x > y for x, y in zip(counters(file)[:4], was[:4], strict=True)
                ),
                "not all threads go on",
            )
        end = counters(file)
        assert (end.eintr, end.wrong) == (0, 0)
        wait_untraced(victim.pid)


@needs("usual speed")  # it waits for a moment at which all of them sleep
def test_a_thousand_threads(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "0", "1000", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        stopped = stop(victim.pid)
        threads = stopped.threads()
        assert [t.tid for t in threads] == [victim.pid, *sorted(before)]
        assert {t.tid: t.name for t in threads[1:]} == {t: r.name[:15] for t, r in before.items()}
        assert stopped.left_out == []
        pause = pause_of(stopped)
        assert 0 < pause.worst <= pause.total <= pause.traced
        wait_blocked(victim.pid, file)
        assert rows(file) == before


def test_a_process_in_sigstop_stays_there(tmp_path: Path) -> None:
    # GIVEN a process that SIGSTOP has stopped
    file = tmp_path / "rows"
    with running("live_blocked", str(file), cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        os.kill(victim.pid, signal.SIGSTOP)
        wait_until(lambda: set(states(victim.pid).values()) == {"T"}, "SIGSTOP does not stop it")
        # WHEN it is stopped by us
        stopped = stop(victim.pid)
        # THEN we found it so, and left it so
        assert {s.kind for s in stopped.stops.values()} == {StopKind.GROUP}
        wait_until(lambda: set(states(victim.pid).values()) == {"T"}, "it goes on by itself")
        # AND SIGCONT ends it, also when it comes while we hold the process
        os.kill(victim.pid, signal.SIGCONT)
        wait_blocked(victim.pid, file)
        os.kill(victim.pid, signal.SIGSTOP)
        wait_until(lambda: set(states(victim.pid).values()) == {"T"}, "SIGSTOP does not stop it")

        def work() -> None:
            with StoppedProcess(victim.pid, deadline=PATIENCE):
                os.kill(victim.pid, signal.SIGCONT)

        run_as_tracer(work)
        wait_blocked(victim.pid, file)
        stopped_calls = {r.name for t, r in rows(file).items() if r != before[t]}
        # what SIGSTOP itself does to these calls is not ours (signal(7), last section)
        assert stopped_calls <= {before[t].name for t in stopped.rewound} | {"waitpid"}


def test_signals_are_delivered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running("live_signals", cwd=tmp_path) as victim:
        pid = victim.pid
        wait_until(lambda: states(pid) == {pid: "S"}, "it does not sleep")

        # GIVEN a process that is held WHEN signals come
        def work() -> None:
            with StoppedProcess(pid, deadline=PATIENCE):
                os.kill(pid, signal.SIGUSR1)
                os.kill(pid, signal.SIGUSR2)
                os.kill(pid, signal.SIGRTMIN)
                os.kill(pid, signal.SIGRTMIN)
                os.kill(pid, signal.SIGCHLD)  # ignored by default

        run_as_tracer(work)
        # THEN each has reached it when it goes on, and its call fails, as without us
        assert read_line(victim) == b"usr1 1 usr2 1 rt 2 eintr 1\n"

        # AND one that comes when the process is traced already, just before it is stopped
        interrupt = ptrace.interrupt

        def after_signal(tid: int) -> None:
            os.kill(pid, number)
            wait_until(lambda: states(pid) == {pid: "t"}, "the signal does not stop it")
            interrupt(tid)

        monkeypatch.setattr(ptrace, "interrupt", after_signal)
        wait_until(lambda: states(pid) == {pid: "S"}, "it does not sleep")
        number = signal.SIGUSR1
        stopped = stop(pid)
        assert stopped.stops == {pid: Stop(pid, StopKind.SIGNAL, signal.SIGUSR1)}
        assert read_line(victim) == b"usr1 2 usr2 1 rt 2 eintr 2\n"
        # AND one that it ignores does not disturb its call
        wait_until(lambda: states(pid) == {pid: "S"}, "it does not sleep")
        number = signal.SIGCHLD
        assert stop(pid).rewound == [pid]
        wait_until(lambda: states(pid) == {pid: "S"}, "it does not sleep")
        os.kill(pid, signal.SIGUSR2)
        assert read_line(victim) == b"usr1 2 usr2 2 rt 2 eintr 3\n"


def test_who_waits_in_vfork_is_left_out(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a thread that waits in vfork, and two others
    with running("live_vfork", cwd=tmp_path) as victim:
        wait_until(lambda: sorted(states(victim.pid).values()) == ["D", "S", "S"], "no vfork")
        (waiting,) = [tid for tid, state in states(victim.pid).items() if state == "D"]
        # WHEN the process is stopped THEN that does not hang
        stopped = stop(victim.pid, probe=probe, deadline=DEADLINE)
        # AND the one is named, with what is known of it
        (other,) = stopped.left_out
        assert (other.tid, other.why) == (waiting, Why.UNINTERRUPTIBLE)
        assert other.call is not None and other.call.number == SYS_VFORK
        assert other.thread is not None
        assert (other.thread.regs[19], other.thread.regs[16]) == (other.call.sp, other.call.ip)
        assert [t.tid for t in stopped.threads()] == [
            *sorted({*states(victim.pid)} - {waiting}),
            waiting,
        ]
        # AND nobody is left traced: it goes on when its child does
        wait_untraced(victim.pid)
        victim.go()
        assert victim.wait() == 0


@contextlib.contextmanager
def traced(pid: int) -> Iterator[int]:
    """The process, traced by strace; yields strace's pid."""
    with subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-p", str(pid)], stderr=subprocess.DEVNULL
    ) as other:
        wait_until(lambda: tracers(pid) == {other.pid}, "strace does not attach")
        try:
            yield other.pid
        finally:
            other.terminate()


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    with running("null_main", cwd=tmp_path) as victim:
        with (
            traced(victim.pid) as other,
            pytest.raises(
                CaptureError,
                match=rf"^process {victim.pid} is being traced by process {other} \(strace\)",
            ),
        ):
            stop(victim.pid)
        wait_untraced(victim.pid)
        # it has ended, and nobody has waited for it
        victim.go()
        wait_until(lambda: states(victim.pid) == {victim.pid: "Z"}, "it does not die")
        with pytest.raises(CaptureError, match=r"\(null_main\) has ended and only waits for"):
            stop(victim.pid)
    with pytest.raises(CaptureError, match=r"process 2 .* is a kernel thread"):
        stop(2)
    with pytest.raises(CaptureError, match=f"process {os.getpid()} is this program itself"):
        stop(os.getpid())
    with pytest.raises(CaptureError, match=f"there is no process {victim.pid}"):
        victim.wait()
        stop(victim.pid)


def test_dying_while_it_is_held(tmp_path: Path) -> None:
    # GIVEN a process that is killed while we hold it
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "1", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)

        def work() -> list[Thread]:
            with StoppedProcess(victim.pid, deadline=PATIENCE) as stopped:
                os.kill(victim.pid, signal.SIGKILL)
            return stopped.threads()

        # THEN what was read is there, and its parent learns of its end
        assert len(run_as_tracer(work)) == len(rows(file)) + 1
        assert victim.wait() == -signal.SIGKILL


def test_killed_between_our_steps(tmp_path: Path) -> None:
    file = tmp_path / "counters"
    for seed in range(20):
        # GIVEN a process that is stopped again and again
        with running("live_busy", str(file), cwd=tmp_path) as victim:
            delay = random.Random(seed).random() * 0.02
            killer = threading.Timer(delay, os.kill, (victim.pid, signal.SIGKILL))
            killer.start()

            def work() -> None:
                while True:
                    with StoppedProcess(victim.pid):
                        pass

            # WHEN it is killed at any moment THEN that is told, and its parent learns of its end
            with pytest.raises(CaptureError, match=f"process {victim.pid} "):
                run_as_tracer(work)
            killer.join()
            assert victim.wait() == -signal.SIGKILL


AS_NOBODY = """
import sys
from collector.linux.ptrace import run_as_tracer
from collector.snapshot.stop import StoppedProcess
from collector.errors import CaptureError
def work():
    with StoppedProcess(int(sys.argv[1]), deadline=60) as stopped:
        pass
    return len(stopped.threads())
try:
    print(run_as_tracer(work))
except CaptureError as error:
    print(error)
"""


def as_nobody(pid: int) -> str:
    """What an unprivileged user gets who stops a process: the number of threads, or the error."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(pid)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_users_may_stop_what_is_theirs(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    file = tmp_path / "counters"
    with running("live_busy", str(file), cwd=tmp_path, uid=NOBODY) as victim:
        lasting = 1 + 2 * 4 + 8  # threads, and those that are born meanwhile
        assert int(as_nobody(victim.pid)) >= lasting
        before = counters(file)
        wait_until(
            lambda: all(x > y for x, y in zip(counters(file)[:4], before[:4], strict=True)),
            "not all threads go on",
        )
        assert (counters(file).eintr, counters(file).wrong) == (0, 0)
    with running("live_signals", cwd=tmp_path) as victim:
        expected = f"process {victim.pid} belongs to user 0 and this program runs as user {NOBODY}"
        assert as_nobody(victim.pid) == f"{expected}: be that user, or root"


SET_DUMPABLE = """
import ctypes, sys
ctypes.CDLL(None).prctl(4, int(sys.argv[1]), 0, 0, 0)  # PR_SET_DUMPABLE <linux/prctl.h>
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def of_nobody(*command: str, dumpable: int = 1, group: int = NOBODY) -> Iterator[int]:
    """A process of an unprivileged user; it is ready. Yields its pid."""
    with subprocess.Popen(
        [*command, "/usr/bin/python3", "-c", SET_DUMPABLE, str(dumpable)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=NOBODY,
        group=group,
        extra_groups=[],
        cwd="/",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_what_users_may_not_stop() -> None:
    # same user and group: it may
    with of_nobody() as pid:
        assert as_nobody(pid) == "1"
    # in a user namespace that this user has made: it may
    with of_nobody("unshare", "--user") as pid:
        assert as_nobody(pid) == "1"
    with of_nobody(dumpable=0) as pid:
        assert as_nobody(pid) == (
            f"process {pid} is not dumpable (prctl PR_SET_DUMPABLE, or it changed its ids): "
            "trace it as root"
        )
        assert len(stop(pid).tids) == 1  # root may
    with of_nobody(group=NOBODY - 1) as pid:
        assert as_nobody(pid) == (
            f"process {pid} runs with group {NOBODY - 1} and this program with {NOBODY}: "
            "trace it as root"
        )


def test_ids_are_those_of_its_own_namespace() -> None:
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as outer:
        assert outer.stdin is not None and outer.stdout is not None
        outer.stdin.write(b"ready\n")
        outer.stdin.flush()
        assert outer.stdout.readline() == b"ready\n"
        (inner,) = descendants(outer.pid)
        found: list[Thread] = []

        def work() -> None:
            with StoppedProcess(inner, deadline=PATIENCE) as stopped:
                pass
            found.extend(stopped.threads())

        run_as_tracer(work)
        assert [(t.tid, t.ppid, t.name) for t in found] == [(1, 0, "cat")]
        outer.stdin.close()
        assert outer.wait() == 0


def test_what_is_unknown_of_a_thread_that_left() -> None:
    assert tasks.facts(os.getpid(), 1 << 22) is None
    assert procfs.blocked(os.getpid(), 1 << 22) is None
    assert Unstopped(1, Why.LATE, None).thread is None


# --- in exec --------------------------------------------------------------------------------------

BEGINS_ANOTHER = """
import os, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
input()
os.execv("/bin/sleep", ["sleep", "1000"])
"""


def test_whoever_waits_in_exec_for_a_thread_that_we_trace_keeps_nobody_waiting() -> None:
    # GIVEN a process of two threads, one of which we trace
    command = [sys.executable, "-c", BEGINS_ANOTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdin is not None and target.stdout is not None
        target.stdout.readline()
        first, other = procfs.thread_ids(target.pid)

        def work() -> None:
            ptrace.seize(other)
            # WHEN it begins another program, which ends that thread, and we trace the first one
            target.stdin.write(b"\n")
            target.stdin.flush()
            wait_until(lambda: procfs.thread_state(first, other) == "Z", "the thread has not ended")
            ptrace.seize(first)

        # THEN we can, and it goes on
        try:
            run_as_tracer(work)
            wait_until(lambda: procfs.thread_ids(first) == [first], "it is in execve still")
            wait_until(lambda: b"sleep" in (procfs.read(f"/proc/{first}/comm") or b""), "as before")
        finally:
            target.kill()
