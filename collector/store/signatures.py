"""Signatures in the index: columns of a death, and what is counted of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from collector.errors import Ambiguous, NotFound
from collector.model import Record
from collector.signature.facets import build_of, facets_of

LATEST = "latest"
COLUMNS = ("deaths", "signature", "rules", "build", "facets")  # of the table of deaths
_CANDIDATES = 8  # ids that an Ambiguous names

Query = Callable[[str, Mapping[str, object]], list[tuple[Any, ...]]]


class SignatureRow(NamedTuple):
    """Deaths of one signature, one executable and one build."""

    signature: str
    exe: str | None
    build: str | None
    rules: str | None  # see `rules_of`
    deaths: int
    first: int  # microseconds since 1970
    last: int


def signature_columns(record: Record) -> tuple[object, ...]:
    """What the table has in COLUMNS."""
    signature, deaths = record.signature, record.count or 1
    if signature is None or signature.id is None:
        return deaths, None, None, None, None
    facets = msgspec.json.encode(facets_of(record)).decode()
    return deaths, signature.id, rules_of(record), build_of(record), facets


def rules_of(record: Record) -> str | None:
    """Which algorithm, and which rules of it, made a signature; None: it took no rules."""
    signature = record.signature
    if signature is None or signature.rules is None:
        return None
    return f"{signature.version}:{signature.rules}"


class Signatures:
    """What the index has of all deaths. StoreError, from each method, if it cannot be used."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def counts(self, only: str | None = None) -> list[SignatureRow]:
        """How often, when and in which builds each signature was seen, or this one; in no order."""
        which = "IS NOT NULL" if only is None else "= :id"
        found = self._query(
            "SELECT signature, exe, build, rules, sum(deaths), min(time), max(time) FROM deaths "
            f"WHERE signature {which} GROUP BY signature, exe, build, rules",
            {"id": only},
        )
        return [SignatureRow(*row) for row in found]

    def texts(self) -> dict[str, str]:
        """id -> text of each signature; also of some whose deaths were removed."""
        return dict(self._query("SELECT id, text FROM signatures", {}))

    def has(self, id: str) -> bool:
        """Whether a death with this signature was on record since the agent before started."""
        return bool(self._query("SELECT 1 FROM signatures WHERE id = :id", {"id": id}))

    def tallies(self, signature: str) -> list[tuple[str, str, int, int, int, int]]:
        """Of each value of each facet: deaths and episodes of this signature, those of others."""
        found = self._query(
            "SELECT facet, value, sum(iif(signature = :id, deaths, 0)), "
            "sum(iif(signature = :id, episodes, 0)), sum(iif(signature = :id, 0, deaths)), "
            "sum(iif(signature = :id, 0, episodes)) FROM tallies GROUP BY facet, value",
            {"id": signature},
        )
        return [(f, v, here, ours, others, theirs) for f, v, here, ours, others, theirs in found]

    def others(self, signature: str) -> int:
        """How many records have another one."""
        query = "SELECT count(*) FROM deaths WHERE signature IS NOT NULL AND signature != :id"
        [(count,)] = self._query(query, {"id": signature})
        return int(count)

    def newest(self, most: int) -> list[tuple[str, str]]:
        """Signature and id of the newest death of each of those that were seen last."""
        found = self._query(
            "SELECT signature, id, max(time) FROM deaths WHERE signature IS NOT NULL "
            "GROUP BY signature ORDER BY max(time) DESC LIMIT :most",
            {"most": most},
        )
        return [(signature, id) for signature, id, _ in found]

    def resolve(self, name: str) -> str:
        """The id of the one signature that begins so; `latest`: that of the newest death that has
        one. NotFound, or Ambiguous with candidates."""
        if name == LATEST:
            newest = self._query(
                "SELECT signature FROM deaths WHERE signature IS NOT NULL "
                "ORDER BY time DESC, id DESC LIMIT 1",
                {},
            )
            for (signature,) in newest:
                return str(signature)
            raise NotFound("no signatures on record").advised("`coreward list` shows deaths")
        prefix = name.lower()
        found = sorted(id for id in self.texts() if prefix and id.startswith(prefix))
        if not found:
            raise NotFound(f"no signature begins with {name!r}; `coreward signatures` shows all")
        if len(found) > 1:
            shown = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
            raise Ambiguous(f"{len(found)} signatures begin with {name!r}: {shown}").advised(
                "give more digits"
            )
        return found[0]
