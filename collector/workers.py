"""A lane: a few threads that work off a bounded queue.

Not a general executor: a lane says at once when it is full (the caller counts that), never loses
the exception of a task, and starts its threads only when there is work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from contextlib import AbstractContextManager

from collector.fair import FairQueue, Task, Waiting

_TOGETHER = 128  # tasks
USUAL_S = 0.1  # that a task takes, until there was one
_WEIGHT = 1 / 8  # of the last task among all before it

log = logging.getLogger(__name__)


class Lane:
    """At most `workers` tasks at a time, at most `limit` waiting.

    reserved: so many more workers for tasks that come `first`, however long the others take.
    together: what to enter around tasks that a worker does one after the other.
    most_bytes: that the waiting tasks may keep in memory. Owners have fair shares: see fair.py.
    of_one: workers that are at work for one owner at a time, but for tasks that come `first`.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        limit: int,
        *,
        nice: int = 0,
        reserved: int = 0,
        most_bytes: int | None = None,
        of_one: int | None = None,
        together: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.name = name
        self._together = together
        self._usual, self._workers = workers, workers + reserved
        self._nice = nice
        self._of_one = of_one
        self._running: Counter[Hashable] = Counter()  # tasks that did not come first, by owner
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        # a token for each task. Not a Condition, which takes longer to wake a worker: a dying
        # process may wait for it
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._tasks = FairQueue(limit, most_bytes)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._busy = 0
        self._usual_busy = 0  # of these, with tasks that did not come first
        self._task_s = USUAL_S  # in the mean
        self._begun: dict[int, float] = {}  # thread -> when it began its task, of time.monotonic
        self._ended = 0  # tasks
        self._closed = False

    def submit(
        self,
        task: Task,
        *,
        first: bool = False,
        dropped: Task | None = None,
        owner: Hashable = None,
        size: int = 0,
    ) -> bool:
        """Queue a task (`first`: before all others); False if the lane is full, its owner's share
        is used up, it is closed, or the system has no thread for it.

        dropped: to be done instead if the lane is closed before the task was begun. size: bytes
        that it keeps in memory.
        """
        with self._lock:
            if self._closed:
                return False
            if self._idle <= len(self._tasks) and len(self._threads) < self._workers:
                self._start()
            if not self._threads:
                return False
            if not self._tasks.add(Waiting(task, dropped, first, owner, size)):
                return False
            self._calls.put(None)
            return True

    def _start(self) -> None:
        """One thread more, if the system has one; else the others do the work, if there are any."""
        name = f"{self.name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("%s: %s", self.name, error)
        else:
            self._threads.append(thread)

    @property
    def waiting(self) -> int:
        """Tasks that no worker has taken yet."""
        return len(self._tasks)

    def waiting_of(self, owner: Hashable) -> int:
        """Those of one owner, without those that came `first`."""
        with self._lock:
            return self._tasks.waiting_of(owner)

    @property
    def each_s(self) -> float:
        """Seconds from one task that is done to the next, if all workers have some."""
        return self._task_s / self._usual

    def stuck_s(self) -> float:
        """For how many seconds no worker has begun another task; 0: one is free."""
        begun = self._begun.copy()
        return time.monotonic() - max(begun.values()) if len(begun) >= self._workers else 0.0

    def all_so_far(self) -> Callable[[], bool]:
        """What says whether all tasks that are in the lane now are done, whatever comes later.

        A task that waits counts as done when one more has been than waited before it.
        """
        with self._lock:
            now, until = time.monotonic(), self._ended + len(self._tasks) + len(self._begun)

        def are_done() -> bool:
            return self._ended >= until and all(at > now for at in self._begun.copy().values())

        return are_done

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is queued or running; False if that took longer (seconds)."""
        with self._done:
            return self._done.wait_for(lambda: not self._tasks and not self._busy, timeout)

    def close(self) -> int:
        """Take no more work, and drop what was never begun; returns how many tasks that were."""
        with self._lock:
            self._closed = True
            left = self._tasks.clear()
            for _ in self._threads:
                self._calls.put(None)
        for waiting in left:
            if waiting.dropped is not None:
                self._do(waiting.dropped)
        return len(left)

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # else it is that of whoever submitted first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while True:
            with self._lock:
                self._idle += 1
            self._calls.get()
            with self._lock:
                self._idle -= 1
                if self._closed and not self._tasks:
                    return
                if not self._may_begin():
                    continue  # whoever ends such a task calls again
                usual = not self._tasks.next_is_first
                most = _TOGETHER if self._together else 1
                begun = [self._tasks.pop(self._blocked()) for _ in range(min(most, self.waiting))]
                owner = begun[0].owner
                tasks = deque(task.run for task in begun)
                del begun  # each task is forgotten when it is done
                self._busy += 1
                self._usual_busy += usual
                self._running[owner] += usual
            try:
                self._do_all(tasks)
            finally:
                with self._lock:
                    self._busy -= 1
                    self._usual_busy -= usual
                    self._running[owner] -= usual
                    if not self._running[owner]:
                        del self._running[owner]
                    if self._tasks:
                        self._calls.put(None)
                    self._done.notify_all()

    def _may_begin(self) -> bool:
        """Whether the first task that waits is one for a worker that is free."""
        if not self._tasks:
            return False
        free = self._tasks.next_is_first or self._usual_busy < self._usual
        return free and self._tasks.has_turn(self._blocked())

    def _blocked(self) -> Collection[Hashable]:
        """The owners for whom as many workers are at work as may be."""
        if self._of_one is None:
            return ()
        most = self._of_one
        return [
            owner for owner, count in self._running.items() if owner is not None and count >= most
        ]

    def _do_all(self, tasks: deque[Task]) -> None:
        """Each is forgotten with all that it holds when it is done."""
        if self._together is None or len(tasks) < 2:
            while tasks:
                self._do(tasks.popleft())
            return
        try:
            with self._together():
                while tasks:
                    self._do(tasks.popleft())
        except Exception:
            log.exception("%s: what was done together could not be finished", self.name)

    def _do(self, task: Task) -> None:
        begun = self._begun[threading.get_ident()] = time.monotonic()
        try:
            task()
        except Exception:
            log.exception("%s: a task failed", self.name)
        finally:
            del self._begun[threading.get_ident()]
            with self._lock:
                self._ended += 1
        self._task_s += (time.monotonic() - begun - self._task_s) * _WEIGHT
