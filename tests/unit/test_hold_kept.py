"""A process that is kept waiting, and that nobody lets go, goes when its time is over."""

from __future__ import annotations

import os
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from collector.errors import HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.kept import Kept

PATIENCE = 60.0  # seconds; only a failing test waits so long
LONG, SHORT = 3600.0, 0.001


class Held:
    """A process that waits: `gone` becomes readable when it is released."""

    def __init__(self) -> None:
        ours, self.gone = socket.socketpair()
        self.handoff = HandOff(
            ours.detach(), os.getpid(), os.pidfd_open(os.getpid()), time.monotonic_ns(), False
        )

    def is_gone(self, timeout: float = 0) -> bool:
        return bool(select.select([self.gone], [], [], timeout)[0])


@pytest.fixture
def held() -> Iterator[Held]:
    found = Held()
    yield found
    found.handoff.release()
    found.gone.close()


def test_it_goes_when_its_time_is_over_and_whoever_had_it_is_told(held: Held) -> None:
    held.handoff.keep(LONG)
    assert not held.is_gone()
    # WHEN nobody lets it go
    held.handoff.keep(SHORT)
    # THEN it goes
    assert held.is_gone(PATIENCE)
    with pytest.raises(HoldError, match=r"nobody was done with it within 0\.001 s"):
        held.handoff.keep(LONG)
    # AND its release says how long it was held: not until now
    first = held.handoff.release()
    assert held.handoff.release() == first
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(held.handoff.pidfd)


def test_one_that_was_released_in_time_is_not_late(held: Held) -> None:
    held.handoff.keep(LONG)
    held.handoff.release()
    assert held.is_gone()
    assert held.handoff.late is None


def test_one_that_the_watchdog_has_let_go_is_not_kept(held: Held) -> None:
    # GIVEN a process that nothing was decided of for too long
    held.handoff._unwatch = lambda: False
    # THEN it cannot be kept; what was pinned of it before is as good as ever
    with pytest.raises(HoldError, match=r"longer than hold\.patience"):
        held.handoff.keep(LONG)
    held.handoff.release()
    assert held.handoff.late is None


def test_the_others_go_although_one_hangs_for_ever_in_a_lane() -> None:
    # GIVEN processes with deadlines, one of which cannot be let go
    kept, gone = Kept(), queue.SimpleQueue[int]()

    def fail() -> None:
        raise OSError("it cannot be let go")

    kept.watch(1, LONG, lambda: gone.put(1))
    kept.watch(2, SHORT, fail)
    kept.watch(3, SHORT * 2, lambda: gone.put(3))
    # THEN the next one goes in its time
    assert gone.get(timeout=PATIENCE) == 3
    # AND one that was forgotten does not
    kept.forget(1)
    kept.watch(4, SHORT, lambda: gone.put(4))
    assert gone.get(timeout=PATIENCE) == 4
    assert gone.empty()


def test_there_is_a_thread_only_where_somebody_waits() -> None:
    before = threading.active_count()
    kept = Kept()
    kept.forget(1)
    assert threading.active_count() == before
