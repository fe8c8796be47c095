"""Whether something grows over time: a slope that single spikes do not bend."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

_MOST = 400  # points: all pairs of them are looked at


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between any two points (Theil and Sen); 0 if there are too few.

    In units of the values by those of the times. At most 29 % of the points may be far off.
    """
    step = max(1, len(times) // _MOST)
    points = list(zip(times, values, strict=True))[::step]
    slopes = [
        (later[1] - before[1]) / (later[0] - before[0])
        for before, later in itertools.combinations(points, 2)
        if later[0] != before[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def growth(times: Sequence[float], values: Sequence[float]) -> float:
    """By how much the values grow over all of this time, as the slope says."""
    return slope(times, values) * (times[-1] - times[0]) if times else 0.0
