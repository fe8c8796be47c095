"""How a process of a systemd unit last ended: a service may ask why its predecessor died."""

from __future__ import annotations

import datetime
import glob
from pathlib import Path

import msgspec

from collector.errors import UsageError
from collector.linux import cgroupfs
from collector.model import Cause
from collector.policy.facts import unit_of_cgroup
from collector.policy.types import StoreSettings
from collector.store.filter import Filter
from collector.store.routine import BY
from collector.store.store import Store


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a process: why, not what was in its memory."""

    unit: str
    time: datetime.datetime  # UTC
    pid: int
    comm: str
    reason: str
    signal_name: str | None
    signature: str | None  # of the same bug in words: docs/signatures.md
    routine: bool  # it was no crash: a stop, or its parent
    id: str | None  # of its record


def last_end(unit: str | None = None, store: Path | None = None) -> Last | None:
    """How a process of a unit last ended, as far as its record may be read; None: none is known.

    unit: as systemctl prints it; None: that of the calling process. store: the folder; None: the
    usual one. Raises UsageError if the caller is in no unit, StoreError if there is no store.
    """
    wanted = own_unit() if unit is None else unit
    with Store(store or StoreSettings().path, create=False, readonly=True) as opened:
        return last_of(opened, wanted)


def last_of(store: Store, unit: str) -> Last | None:
    """The newest end of a process of this unit; None: there is none."""
    wanted = Filter(unit=glob.escape(unit), closed=True)
    records = (one for one in store.each(wanted) if one.cause is not Cause.SNAPSHOT)
    record = next(records, None)
    end = next((one for one in store.routine.each() if one.unit == unit), None)
    if end is not None and (record is None or end.time > record.time):
        return Last(
            unit=unit,
            time=end.time,
            pid=end.pid,
            comm=end.comm,
            reason=f"ended by {end.signal_name or end.signal}: {BY[end.way]}",
            signal_name=end.signal_name,
            signature=None,
            routine=True,
            id=None,
        )
    if record is None:
        return None
    return Last(
        unit=unit,
        time=record.last or record.time,
        pid=record.pid,
        comm=record.comm,
        reason=record.reason or "",
        signal_name=record.signal_name,
        signature=None if record.signature is None else record.signature.text,
        routine=False,
        id=record.id,
    )


def own_unit() -> str:
    """The unit that this process is in. UsageError: it is in none."""
    group = cgroupfs.path_in(Path("/proc/self/cgroup").read_bytes())
    unit = unit_of_cgroup(group) if group else None
    if unit is None:
        raise UsageError("this is no process of a unit; name one")
    return unit
