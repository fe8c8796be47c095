"""`coreward last`."""

from __future__ import annotations

import argparse
import datetime
import glob
from pathlib import Path

import msgspec

from collector.cli import render
from collector.cli.choice import json_argument, reading
from collector.cli.routine import BY
from collector.errors import NotFound, UsageError
from collector.linux import cgroupfs
from collector.model import Cause
from collector.policy.facts import unit_of_cgroup
from collector.store.filter import Filter
from collector.store.store import Store


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """How a unit's process last ended: why, not what was in its memory."""

    unit: str
    time: datetime.datetime
    pid: int
    comm: str
    reason: str
    signal_name: str | None
    routine: bool  # it was no crash: a stop, or its parent
    id: str | None  # of its record


class LastVerb:
    """Says how a process of a systemd unit last ended, as far as it is on record: its death, or an
    end that was no crash. Without --unit it is the unit that this command runs in: a service can
    ask why its predecessor died. Exit status 1 if nothing is on record."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--unit", metavar="UNIT", help="its whole name, as billing.service")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        unit = args.unit or _own_unit()
        with reading(args.store) as store:
            found = last_of(store, unit)
        if found is None:
            raise NotFound(f"no end of a process of {unit} is on record in {args.store}").advised(
                "`coreward list --unit 'GLOB'` and `--routine` show those of others"
            )
        if args.json:
            render.print_json(found)
        else:
            when = render.local_time(found.time)
            record = "" if found.id is None else f"; `coreward info {found.id}` says more"
            print(render.clean(f"{when} {found.comm}[{found.pid}]: {found.reason}{record}"))
        return 0


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
        routine=False,
        id=record.id,
    )


def _own_unit() -> str:
    group = cgroupfs.path_in(Path("/proc/self/cgroup").read_bytes())
    unit = unit_of_cgroup(group) if group else None
    if unit is None:
        raise UsageError("last: this is no process of a unit; name one with --unit")
    return unit
