"""Clock interrupts on every CPU that run a BPF program for a short while (perf_event_open(2)).

PERF_COUNT_SW_CPU_CLOCK is a timer of the kernel's own, so this works in virtual machines without
hardware counters. It knows nothing of what the program does. Linux >= 4.9; needs CAP_PERFMON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from collector.errors import ProbeError

_PERF_EVENT_OPEN = 298  # x86-64
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_CPU_CLOCK = 1, 0  # <linux/perf_event.h>
_PERF_FLAG_FD_CLOEXEC = 8
_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0
_DISABLED, _EXCLUDE_HV, _EXCLUDE_IDLE = 1 << 0, 1 << 6, 1 << 7  # bits of perf_event_attr.flags
_IOC_ENABLE, _IOC_DISABLE, _IOC_SET_BPF = 0x2400, 0x2401, 0x40042408
_ONLINE = Path("/sys/devices/system/cpu/online")

_libc = ctypes.CDLL(None, use_errno=True)


class _Attr(ctypes.Structure):
    """The head of struct perf_event_attr."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
    )


def parse_cpus(text: str) -> list[int]:
    """The CPUs of a list such as `0-3,8`."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


class Clock:
    """One event per online CPU, off until `ticking`. A context manager by `close`."""

    def __init__(self, program: int, period_ns: int) -> None:
        """`program`: of type PERF_EVENT. ProbeError if the kernel allows no such event."""
        self._events: list[int] = []
        try:
            for cpu in parse_cpus(_ONLINE.read_text()):
                self._add(cpu, program, period_ns)
        except OSError as error:
            self.close()
            raise ProbeError(f"clock interrupts cannot be had: {error.strerror}") from error

    def _add(self, cpu: int, program: int, period_ns: int) -> None:
        attr = _Attr(
            type=_PERF_TYPE_SOFTWARE,
            size=_ATTR_BYTES,
            config=_PERF_COUNT_SW_CPU_CLOCK,
            sample_period=period_ns,
            flags=_DISABLED | _EXCLUDE_HV | _EXCLUDE_IDLE,
        )
        event = _libc.syscall(
            _PERF_EVENT_OPEN, ctypes.byref(attr), -1, cpu, -1, _PERF_FLAG_FD_CLOEXEC
        )
        if event < 0:
            number = ctypes.get_errno()
            if number == errno.ENODEV:  # it went off line meanwhile
                return
            raise OSError(number, os.strerror(number))
        self._events.append(event)
        fcntl.ioctl(event, _IOC_SET_BPF, program)

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """The interrupts happen inside this block."""
        try:
            for event in self._events:
                fcntl.ioctl(event, _IOC_ENABLE, 0)
            yield
        finally:
            for event in self._events:
                fcntl.ioctl(event, _IOC_DISABLE, 0)

    def close(self) -> None:
        while self._events:
            os.close(self._events.pop())
