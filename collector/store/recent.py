"""Who died in the last minute, hour and day: numbers of one look at the index.

A record that stands for many deaths, of a storm, does not say when each of them was: they count as
if they had come evenly between the first and the last one. What a clock that was put back has left
in the future does not count.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from collector.model import Cause, Record
from collector.store.filter import microseconds, signature_of

WINDOWS = (60, 3600, 86400)  # seconds
_SECOND = 1_000_000
_MOST_STORMS = 200  # the last ones; each is a record to be read
_MOST_OLDER = 20_000  # of which no more is known than the index has

Query = Callable[[str, Mapping[str, object]], list[tuple[Any, ...]]]


class Died(NamedTuple):
    """Deaths of one signature of one program in one unit. Numbers of storms are no whole ones."""

    unit: str | None
    exe: str | None
    comm: str
    signature: str | None
    minute: float
    hour: float
    day: float
    last: int  # microseconds since 1970


class Recent:
    """StoreError, from each method, if the index cannot be used."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def single(self, now: datetime.datetime) -> list[Died]:
        """Deaths of the last day that have a record each, the newest first."""
        end = microseconds(now)
        minute, hour, day = (end - window * _SECOND for window in WINDOWS)
        found = self._query(
            "SELECT unit, exe, comm, signature, sum(time >= :minute), sum(time >= :hour), "
            "count(*), max(time) FROM deaths WHERE time BETWEEN :day AND :end "
            "AND deaths = 1 AND cause != :not "
            "GROUP BY unit, exe, comm, signature ORDER BY max(time) DESC",
            {"minute": minute, "hour": hour, "day": day, "end": end, "not": Cause.SNAPSHOT.value},
        )
        return [Died(*row) for row in found]

    def storms(self, now: datetime.datetime) -> list[str]:
        """Ids of records that stand for many deaths and were written in the last day."""
        since = (microseconds(now) - WINDOWS[-1] * _SECOND) * 1000
        found = self._query(
            "SELECT id FROM deaths WHERE deaths > 1 AND mtime >= :since "
            "ORDER BY mtime DESC LIMIT :most",
            {"since": since, "most": _MOST_STORMS},
        )
        return [id for (id,) in found]

    def older_storms(self, now: datetime.datetime) -> list[Died]:
        """Those beyond these, as the index alone has them: a record was last written some time
        after the last of its deaths."""
        since = (microseconds(now) - WINDOWS[-1] * _SECOND) * 1000
        found = self._query(
            "SELECT unit, exe, comm, signature, deaths, time, mtime / 1000 FROM deaths "
            "WHERE deaths > 1 AND mtime >= :since AND cause != :not "
            "ORDER BY mtime DESC LIMIT :most OFFSET :read",
            {
                "since": since,
                "not": Cause.SNAPSHOT.value,
                "most": _MOST_OLDER,
                "read": _MOST_STORMS,
            },
        )
        end = microseconds(now)
        died = (
            _evenly(
                Died(unit, exe, comm, signature, 0, 0, 0, 0),
                count,
                first,
                max(first, min(last, end)),
                end,
            )
            for unit, exe, comm, signature, count, first, last in found
        )
        return [one for one in died if one.day > 0]


def of_records(records: Iterable[Record], now: datetime.datetime) -> list[Died]:
    """The same of each of these records; of a user's own, say, of which there is no index."""
    return [
        died
        for record in records
        if record.cause is not Cause.SNAPSHOT
        if (died := _of_record(record, now)).day > 0
    ]


def _of_record(record: Record, now: datetime.datetime) -> Died:
    first, last = record.time, max(record.last or record.time, record.time)
    who = Died(record.unit, record.exe, record.comm, signature_of(record), 0, 0, 0, 0)
    count = record.count or 1
    return _evenly(who, count, microseconds(first), microseconds(last), microseconds(now))


def _evenly(who: Died, count: int, first: int, last: int, end: int) -> Died:
    """So many deaths from first to last, in the windows before `end`; microseconds."""
    minute, hour, day = (
        count * _part(first, last, end - window * _SECOND, end) for window in WINDOWS
    )
    return who._replace(minute=minute, hour=hour, day=day, last=last)


def _part(first: int, last: int, since: int, until: int) -> float:
    """What part of the time from first to last is in these bounds."""
    begin, end = max(first, since), min(last, until)
    return max(end - begin + 1, 0) / (last - first + 1)
