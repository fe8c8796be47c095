"""A bounded queue with fair shares: what one owner has waiting keeps nobody else's work back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

Task = Callable[[], object]
_NOBODY = object()


class Waiting(NamedTuple):
    """A task of a lane."""

    run: Task
    dropped: Task | None
    first: bool  # before all others
    owner: Hashable = None  # whose it is; None: nobody's in particular
    size: int = 0  # bytes that it keeps in memory


class FairQueue:
    """Tasks that come `first`, the oldest of them before the others, then one of each owner in
    turn. Not thread-safe.

    An owner may have half of what may wait, and half of the bytes; or one task, of any size.
    """

    def __init__(self, limit: int, most_bytes: int | None = None) -> None:
        """limit: tasks that may wait. most_bytes: that they may keep in memory; None: any."""
        self._limit = limit
        self._most_bytes = most_bytes
        self._first: deque[Waiting] = deque()
        self._owners: dict[Hashable, deque[Waiting]] = {}  # the next one's turn comes first
        self._bytes: dict[Hashable, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def next_is_first(self) -> bool:
        """Whether the next one is of those that come first."""
        return bool(self._first)

    def waiting_of(self, owner: Hashable) -> int:
        """Tasks of one owner that wait for their turn."""
        return len(self._owners.get(owner, ()))

    def add(self, task: Waiting) -> bool:
        """Whether there was room for it."""
        if self._count >= self._limit or not (task.first or self._has_share(task)):
            return False
        if task.first:
            self._first.append(task)
        else:
            self._owners.setdefault(task.owner, deque()).append(task)
        self._bytes[task.owner] = self._bytes.get(task.owner, 0) + task.size
        self._count += 1
        return True

    def _has_share(self, task: Waiting) -> bool:
        waiting = self.waiting_of(task.owner)
        if task.owner is not None and waiting >= max(1, self._limit // 2):
            return False
        if self._most_bytes is None or not self._count:
            return True
        own = self._bytes.get(task.owner, 0) + task.size
        fits = sum(self._bytes.values()) + task.size <= self._most_bytes
        return fits and (task.owner is None or not waiting or own <= self._most_bytes // 2)

    def has_turn(self, blocked: Collection[Hashable] = ()) -> bool:
        """Whether there is one for `pop`."""
        return bool(self._first) or any(owner not in blocked for owner in self._owners)

    def pop(self, blocked: Collection[Hashable] = ()) -> Waiting:
        """The next one that comes first, or is of none of these owners. Raises IndexError if there
        is none."""
        if self._first:
            task = self._first.popleft()
        else:
            owner = next((owner for owner in self._owners if owner not in blocked), _NOBODY)
            if owner is _NOBODY:
                raise IndexError("nothing waits")
            tasks = self._owners[owner]
            task = tasks.popleft()
            del self._owners[owner]
            if tasks:
                self._owners[owner] = tasks  # behind the others
        self._count -= 1
        left = self._bytes.pop(task.owner, 0) - task.size  # none are kept of an owner who has none
        if left or task.owner in self._owners:
            self._bytes[task.owner] = left
        return task

    def clear(self) -> list[Waiting]:
        """All that wait, in their order; then it is empty."""
        return [self.pop() for _ in range(self._count)]
