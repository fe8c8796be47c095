"""The tracer is killed at any moment: the process that it traced runs on and is correct."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from collector.linux import ptrace
from collector.linux.ptrace import run_as_tracer
from collector.snapshot.rolling import roll
from collector.snapshot.stop import StoppedProcess
from tests.system.live_victims import (
    NOTICING,
    counters,
    read_line,
    rows,
    states,
    wait_blocked,
    wait_untraced,
)
from tests.system.victims import PATIENCE, running, wait_until

KILLS = 60  # of each kind of tracer
LONGEST = 0.02  # seconds until the kill: several stops


def stop_for_ever(pid: int) -> None:
    """Stop the process again and again."""

    def work() -> None:
        while True:
            with StoppedProcess(pid):
                pass

    run_as_tracer(work)


def roll_for_ever(pid: int) -> None:
    while True:
        roll(pid)


def killed_at_random(
    seed: int, trace: Callable[[int], None], pid: int, meanwhile: Callable[[], None]
) -> None:
    """A tracer that begins to trace, and is killed after a while."""
    begun, begins = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            os.write(begins, b"x")
            trace(pid)
        finally:
            os._exit(1)
    os.read(begun, 1)
    os.close(begun)
    os.close(begins)
    end = time.monotonic() + random.Random(seed).random() * LONGEST
    while time.monotonic() < end:
        meanwhile()
        time.sleep(0.0002)  # not waiting for anything: the kill is to come at any point
    os.kill(tracer, signal.SIGKILL)
    assert os.waitpid(tracer, 0)[1] == signal.SIGKILL  # it had not ended by itself


def test_busy_threads_go_on(tmp_path: Path) -> None:
    # GIVEN threads that compute, pass bytes, block and create others, and count their signals
    file = tmp_path / "counters"
    with running("live_busy", str(file), cwd=tmp_path) as victim:
        sent = 0

        def send() -> None:
            nonlocal sent
            os.kill(victim.pid, signal.SIGRTMIN)
            sent += 1

        for seed in range(KILLS):
            for trace in (stop_for_ever, roll_for_ever):
                before = counters(file)
                # WHEN their tracer is killed at any point
                killed_at_random(seed, trace, victim.pid, send)
                # THEN all go on
                wait_untraced(victim.pid)
                wait_until(
                    lambda was=before: all(
                        now > then for now, then in zip(counters(file)[:4], was[:4], strict=True)
                    ),
                    f"after kill {seed} of {trace.__name__} not all threads go on",
                )
                assert not set(states(victim.pid).values()) & set("tT")
        # AND nothing was computed wrong, nor a signal lost or delivered twice
        wait_until(lambda: counters(file).signals >= sent, f"signals were lost: {sent} were sent")
        end = counters(file)
        assert (end.wrong, end.signals) == (0, sent)


def test_blocked_threads_stay_blocked(tmp_path: Path) -> None:
    # GIVEN threads that block in each kind of system call
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "1", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        for seed in range(KILLS // 2):
            for trace in (stop_for_ever, roll_for_ever):
                # WHEN their tracer is killed at any point
                killed_at_random(seed, trace, victim.pid, lambda: None)
                wait_untraced(victim.pid)
        # THEN they block as before
        wait_blocked(victim.pid, file)
        after = rows(file)
        # but for EINTR, as a debugger's death brings it, where a kill came between the stop of
        # such a thread and our next step
        assert {r.name for t, r in after.items() if r.other != before[t].other} == {"spin"}
        assert {r.name for r in after.values() if r.eintr} <= NOTICING


def test_a_signal_that_the_tracer_has_seen_is_not_lost(tmp_path: Path) -> None:
    with running("live_signals", cwd=tmp_path) as victim:
        wait_until(lambda: states(victim.pid) == {victim.pid: "S"}, "it does not sleep")

        # GIVEN a tracer that is killed when it knows that a signal is about to be delivered
        def see_and_die(pid: int) -> None:
            ptrace.seize(pid)
            os.kill(pid, signal.SIGUSR1)
            seen = ptrace.wait(pid, time.monotonic() + PATIENCE)
            if seen == ptrace.Stop(pid, ptrace.StopKind.SIGNAL, signal.SIGUSR1):
                os.kill(os.getpid(), signal.SIGKILL)

        tracer = os.fork()
        if tracer == 0:
            try:
                see_and_die(victim.pid)
            finally:
                os._exit(1)
        assert os.waitpid(tracer, 0)[1] == signal.SIGKILL
        # THEN it is delivered
        assert read_line(victim) == b"usr1 1 usr2 0 rt 0 eintr 1\n"
