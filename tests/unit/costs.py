"""What something costs: of CPU time, so that a busy machine changes nothing of it."""

from __future__ import annotations

import time
from collections.abc import Callable


def grows_evenly(work: Callable[[int], object], size: int) -> bool:
    """Whether ten times the size costs about ten times as much, and not the square of it."""
    return _cost(work, size) < 40 * max(_cost(work, size // 10), 1e-4)


def _cost(work: Callable[[int], object], size: int) -> float:
    """Seconds of this thread, in the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        work(size)
        best = min(best, time.thread_time() - start)
    return best
