"""Threads as /proc tells them, by the example of this process; and refusals that need no right."""

from __future__ import annotations

import os
import threading

import pytest

from collector.errors import CaptureError
from collector.linux import procfs
from collector.linux.ptrace import (
    Event,
    PtraceError,
    Stop,
    StopKind,
    TraceRefused,
    is_tracer,
    run_as_tracer,
    seize,
)
from collector.snapshot import refusal, tasks
from collector.snapshot.stop import StoppedProcess


def test_the_threads_of_this_process() -> None:
    # GIVEN another thread
    gone = threading.Event()
    ids: list[int] = []
    known = threading.Event()

    def live() -> None:
        ids.append(threading.get_native_id())
        known.set()
        gone.wait()

    thread = threading.Thread(target=live)
    thread.start()
    known.wait()
    try:
        # THEN it is listed beside this one, and described (threads of other tests may still end)
        listed = procfs.thread_ids(os.getpid())
        assert {os.getpid(), ids[0]} <= set(listed)
        # AND once, the older one first (numbers begin anew at pid_max)
        assert len(listed) == len(set(listed))
        assert listed.index(os.getpid()) < listed.index(ids[0])
        assert procfs.thread_count(os.getpid()) >= 2
        found = tasks.facts(os.getpid(), ids[0])
    finally:
        gone.set()
        thread.join()
    assert found is not None
    assert (found.tid, found.ppid) == (ids[0], os.getppid())
    assert (found.pgrp, found.sid) == (os.getpgrp(), os.getsid(0))
    as_core = found.thread(range(27), None)
    assert (as_core.tid, as_core.regs, as_core.name) == (ids[0], tuple(range(27)), found.name)


def test_this_program_does_not_stop_itself() -> None:
    with pytest.raises(CaptureError, match=f"process {os.getpid()} is this program itself"):
        refusal.check(os.getpid())


def test_a_zombie_is_refused() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with pytest.raises(CaptureError, match="has ended and only waits for its parent"):
        refusal.check(child)
    os.waitpid(child, 0)
    with pytest.raises(CaptureError, match=f"there is no process {child} in this pid namespace"):
        refusal.check(child)
    assert (procfs.thread_ids(child), procfs.thread_count(child)) == ([], 0)


def test_a_thread_is_no_process() -> None:
    with pytest.raises(CaptureError, match=f"is a thread of process {os.getpid()}"):
        run_as_tracer(lambda: refusal.check(threading.get_native_id()))


def test_work_of_a_tracer() -> None:
    # it runs in a thread of its own, which has ended when it is back
    ran_in = run_as_tracer(threading.get_native_id)
    assert ran_in != threading.get_native_id()
    assert ran_in not in procfs.thread_ids(os.getpid())
    assert run_as_tracer(is_tracer)
    assert not is_tracer()
    # errors come back
    with pytest.raises(TraceRefused) as caught:
        run_as_tracer(lambda: seize(os.getpid()))
    assert isinstance(caught.value, PtraceError | CaptureError)
    assert (caught.value.tid, caught.value.request) == (os.getpid(), "SEIZE")
    # outside of it nothing is stopped
    with pytest.raises(RuntimeError):
        StoppedProcess(os.getppid())


def test_only_a_signal_is_passed_on() -> None:
    assert Stop(1, StopKind.SIGNAL, 15).pass_on == 15
    assert Stop(1, StopKind.GROUP, 19, Event.STOP).pass_on == 0
    assert Stop(1, StopKind.INTERRUPT, 5, Event.STOP).pass_on == 0
    assert [Stop(1, kind).gone for kind in StopKind] == [False] * 5 + [True] * 2
