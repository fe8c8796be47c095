"""Looks that take too long: what is left behind, and what is not."""

from __future__ import annotations

import os
import threading

import pytest

from collector.errors import Stalled
from collector.linux import stall
from collector.linux.stall import with_stall_guard


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "LOOKS", 2)
    monkeypatch.setattr(stall, "LOOK_S", 0.05)


def test_the_result_is_that_of_the_work() -> None:
    assert with_stall_guard(lambda: 1, lambda: threading.current_thread().name) == "stall-guard"


def test_an_exception_is_that_of_the_work() -> None:
    with pytest.raises(ZeroDivisionError):
        with_stall_guard(lambda: 1, lambda: 1 // 0)


def test_work_that_waits_for_a_process_is_left_behind() -> None:
    # GIVEN work that reads what nobody writes
    ours, theirs = os.pipe()
    ended = threading.Event()

    def work() -> None:
        os.read(ours, 1)
        ended.set()

    # THEN it is given up, and the process named
    with pytest.raises(Stalled, match="process 7 keeps its readers waiting") as caught:
        with_stall_guard(lambda: 7, work)
    assert caught.value.pid == 7
    # AND it ends when it can
    os.write(theirs, b"x")
    assert ended.wait(60)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("looks", [True, False])
def test_work_that_runs_or_waits_for_something_else_has_its_time(looks: bool) -> None:
    # GIVEN work of more than the seconds that are waited: on a CPU, or asleep for other reasons
    asked = 0
    enough = threading.Event()

    def whose() -> int | None:
        nonlocal asked
        asked += 1
        if asked == 8:
            enough.set()
        return 7 if looks else None

    def work() -> str:
        while not enough.is_set():
            if not looks:
                enough.wait()
        return "done"

    assert with_stall_guard(whose, work) == "done"
