"""Instants of the kernel's clocks as times of day (clock_gettime(2))."""

from __future__ import annotations

import datetime
import time


def boot_to_utc(boot_ns: int) -> datetime.datetime:
    """UTC of an instant of CLOCK_BOOTTIME, by the clocks' present difference."""
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return datetime.datetime.fromtimestamp((boot_ns + offset) / 1e9, datetime.UTC)
