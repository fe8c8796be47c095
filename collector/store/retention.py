"""What has to go so that a store stays within its limits, and its removal.

Each limit is seen to by itself, the ages first. Where the store as a whole has too much, fair
shares say who gives how much (`shares`), and each gives in the order of `victims`: cores before
records, the oldest first, the first and the newest of each kind later, and what somebody keeps at
the very end; ages and the limits of a single service leave that alone.

A run that is killed leaves a store that is whole (`Store.remove_all`, `remove_cores`); the next one
goes on. It holds a page of victims in memory at a time, and one line for each service.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from collector.store.filter import microseconds
from collector.store.limits import Limits, Trimmed
from collector.store.shares import Holding, Share, quotas
from collector.store.store import Store
from collector.store.victims import KEPT, USUAL, Stage, Victim, Victims

_NAME = 64  # characters of a name that a record says


def trim(store: Store, limits: Limits, now: datetime.datetime) -> Trimmed:
    """Bring the store within its limits. StoreError if something cannot be removed."""
    run = _Run(store, now)
    if limits.max_core_age is not None:
        run.age("max_core_age", limits.max_core_age, cores=True)
    if limits.max_age is not None:
        run.age("max_age", limits.max_age, cores=False)
    if limits.service_max_size is not None:
        run.each_service("service_max_size", limits.service_max_size, _BYTES)
    if limits.service_max_records is not None:
        run.each_service("service_max_records", limits.service_max_records, _NUMBERS)
    if limits.max_records is not None:
        run.all_services("max_records", run.total(_NUMBERS) - limits.max_records, _NUMBERS)
    if limits.max_size is not None:
        run.all_services("max_size", run.total(_BYTES) - limits.max_size, _BYTES)
    if limits.keep_free is not None:
        run.all_services("keep_free", limits.keep_free - store.free_bytes(), _BYTES)
    return run.done


class _Count(msgspec.Struct, frozen=True, kw_only=True):
    """What a limit counts, and what goes for it: `last` only if that was not enough."""

    of: Callable[[Victim], int]
    held: Callable[[Victims, bool], list[Holding]]
    stages: Sequence[Stage]
    last: Sequence[Stage]


_BYTES = _Count(
    of=lambda victim: victim.size,
    held=lambda victims, kept: victims.sizes(kept=kept),
    stages=USUAL,
    last=KEPT,
)
_NUMBERS = _Count(
    of=lambda victim: 1,
    held=lambda victims, kept: victims.numbers(kept=kept),
    stages=tuple(stage for stage in USUAL if not stage.is_core),
    last=tuple(stage for stage in KEPT if not stage.is_core),
)


class _Run:
    """One trim of a store; `done` is what it came to."""

    def __init__(self, store: Store, now: datetime.datetime) -> None:
        self._store = store
        self._victims = store.victims
        self._now = now
        self.done = Trimmed()

    def total(self, count: _Count) -> int:
        """What all services hold."""
        return sum(one.held for one in count.held(self._victims, True))

    def age(self, limit: str, age: float, *, cores: bool) -> None:
        """Remove all that is older, but for what somebody keeps."""
        before = microseconds(self._now) - round(age * 1e6)
        why = f"removed: older than store.{limit}"
        for page in _pages(lambda: self._victims.older(before, cores=cores)):
            self._remove([victim.id for victim in page], limit, why, cores)

    def each_service(self, limit: str, most: int, count: _Count) -> None:
        """Have each service give what it holds above its limit."""
        why = f"removed: its service had more than store.{limit}"
        for one in count.held(self._victims, False):
            if one.held > most:
                share = Share(one.owner, one.service)
                self._give(limit, share, one.held - most, count, count.stages, why)

    def all_services(self, limit: str, wanted: int, count: _Count) -> None:
        """Have as much go as is wanted, in fair shares."""
        for kept, stages in ((False, count.stages), (True, count.last)):
            found = quotas(count.held(self._victims, kept), max(wanted, 0))
            # who gives gives whole cores, perhaps more than his share: the last ones need not
            for share, quota in sorted(found.items(), key=lambda one: one[1], reverse=True):
                if wanted <= 0:
                    return
                who = share.service[:_NAME]
                why = f"removed: the store was beyond store.{limit}, and {who} held most"
                wanted -= self._give(limit, share, quota, count, stages, why)
        if wanted > 0:
            self.done.unmet.append(limit)

    def _give(
        self,
        limit: str,
        share: Share,
        quota: int,
        count: _Count,
        stages: Sequence[Stage],
        why: str,
    ) -> int:
        """Remove so much of one service, stage by stage; how much it was."""
        given = 0
        for stage in stages:
            for page in _pages(partial(self._victims.of, share, stage)):
                some: list[str] = []
                for victim in page:
                    if given >= quota:
                        break
                    some.append(victim.id)
                    given += count.of(victim)
                self._remove(some, limit, why, stage.is_core)
                if given >= quota:
                    return given
        return given

    def _remove(self, ids: Sequence[str], limit: str, why: str, cores: bool) -> None:
        if cores:
            self.done.bytes += self._store.remove_cores(ids, why)
            self.done.cores[limit] = self.done.cores.get(limit, 0) + len(ids)
            return
        removed = [freed for _, freed in self._store.remove_all(ids)]
        self._store.forget(ids)
        self.done.bytes += sum(removed)
        self.done.records[limit] = self.done.records.get(limit, 0) + len(removed)


def _pages(ask: Callable[[], list[Victim]]) -> Iterator[list[Victim]]:
    """What `ask` gives, until it gives nothing more; what cannot be removed does not keep us."""
    last: list[Victim] = []
    while (page := ask()) and page != last:
        yield page
        last = page
