"""Which cores and records may go, and in which order: queries of the index. Decides nothing.

Nothing goes while its record is open: its writer is at work, and would write it again. A core or a
record is *inner* if there are older and newer ones of its kind: the first and the newest of each
kind say most, and stay longer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from collector.store.shares import Holding, Share

Query = Callable[[str, Mapping[str, object]], list[tuple[Any, ...]]]
_PAGE = 64

_BETWEEN = (
    "EXISTS (SELECT 1 FROM deaths AS o WHERE o.kind = d.kind AND {0} AND (o.time, o.id) < (d.time, "
    "d.id)) AND EXISTS (SELECT 1 FROM deaths AS o WHERE o.kind = d.kind AND {0} AND (o.time, o.id) "
    "> (d.time, d.id))"
)
_INNER_CORE = _BETWEEN.format("o.held > 0")
_INNER_RECORD = _BETWEEN.format("1")


class Stage(enum.Enum):
    """What goes before what: each in SQL. All cores of a stage go before the records after it."""

    INNER_CORES = f"held > 0 AND NOT kept AND {_INNER_CORE}"
    INNER_RECORDS = f"NOT kept AND {_INNER_RECORD} AND (held = 0 OR ({_INNER_CORE}))"
    CORES = "held > 0 AND NOT kept"
    RECORDS = "NOT kept"
    KEPT_CORES = "held > 0"
    KEPT_RECORDS = "1"

    @property
    def is_core(self) -> bool:
        return self in (Stage.INNER_CORES, Stage.CORES, Stage.KEPT_CORES)


USUAL = (Stage.INNER_CORES, Stage.INNER_RECORDS, Stage.CORES, Stage.RECORDS)
KEPT = (Stage.KEPT_CORES, Stage.KEPT_RECORDS)


class Victim(NamedTuple):
    """A core, or a whole record, that may go."""

    id: str  # of the record
    size: int  # bytes on disk


class Victims:
    """Asks by `query`, each time anew: what was removed meanwhile is not there any more."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def sizes(self, *, kept: bool) -> list[Holding]:
        """Bytes of all services. kept: those count among what may go that are marked so."""
        return self._holdings("held + other", kept)

    def numbers(self, *, kept: bool) -> list[Holding]:
        """Records of all services."""
        return self._holdings("1", kept)

    def _holdings(self, of_each: str, kept: bool) -> list[Holding]:
        may_go = "closed" if kept else "closed AND NOT kept"
        query = (
            f"SELECT owner, service, sum({of_each}), sum(iif({may_go}, {of_each}, 0)) FROM deaths "
            "GROUP BY owner, service"
        )
        return [Holding(*row) for row in self._query(query, {})]

    def of(self, share: Share, stage: Stage) -> list[Victim]:
        """The oldest ones of a service in this stage; [] if there are none."""
        what = "held" if stage.is_core else "held + other"
        return self._found(
            what, f"owner = :owner AND service = :service AND {stage.value}", share._asdict()
        )

    def older(self, before: int, *, cores: bool) -> list[Victim]:
        """The oldest ones from before this moment, microseconds since 1970; none that is kept."""
        stage = Stage.CORES if cores else Stage.RECORDS
        what = "held" if cores else "held + other"
        return self._found(what, f"time < :before AND {stage.value}", {"before": before})

    def _found(self, what: str, where: str, values: Mapping[str, object]) -> list[Victim]:
        query = (
            f"SELECT id, {what} FROM deaths AS d WHERE closed AND {where} ORDER BY time, id "
            f"LIMIT {_PAGE}"
        )
        return [Victim(*row) for row in self._query(query, values)]

    # ---- for a core that finds no room

    def cores(self) -> dict[str, int]:
        """Bytes of whole cores, by owner; without those that somebody keeps."""
        where = f"closed AND {Stage.CORES.value}"
        query = f"SELECT owner, sum(held) FROM deaths WHERE {where} GROUP BY owner"
        return dict(self._query(query, {}))

    def cores_of(self, owner: str) -> Iterator[Victim]:
        """The cores of an owner in the order in which they go: inner ones first."""
        inner = f"({_INNER_CORE})"
        for condition in (inner, f"NOT {inner}"):
            after: tuple[int, str] = (-(1 << 62), "")
            while True:
                query = (
                    "SELECT id, held, time FROM deaths AS d WHERE closed AND owner = :owner AND "
                    f"{Stage.CORES.value} AND {condition} AND (time, id) > (:time, :id) "
                    f"ORDER BY time, id LIMIT {_PAGE}"
                )
                values = {"owner": owner, "time": after[0], "id": after[1]}
                rows = self._query(query, values)
                if not rows:
                    break
                yield from (Victim(id, held) for id, held, _ in rows)
                after = rows[-1][2], rows[-1][0]
