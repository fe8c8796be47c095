"""The catalogue: which records there are, by the index and by the folders.

A record is in the index before it has a folder, so the index lacks none that was written since it
was last compared with all folders, in this boot: it was not flushed to disk (`Index.boot`). Where
that is so, and there are many records, the index alone is asked. Else all folders are looked at as
well: what was put there by hand, or damaged, is found, and a reader whose index cannot be used does
without.

It keeps the index and never writes a folder. Safe for several threads.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from collector.errors import NotFound, StoreError
from collector.model import Record
from collector.store import index
from collector.store.filter import Filter, microseconds
from collector.store.folders import Folders, OnDisk
from collector.store.index import (
    Index,
    IndexDamaged,
    IndexOutdated,
    IndexUnusable,
    Place,
)
from collector.store.schema import LATER

Damage = Callable[[StoreError], None]
Ids = list[str]
Rows = list[tuple[Record, OnDisk]]
Found = tuple[int, str, Record | None]  # time in microseconds, id, record if it was read
MANY = 10_000  # records; all folders of so many are looked at in some 30 ms
_TOGETHER = 500  # records or rows that are worked on at a time
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


def warn(error: StoreError) -> None:
    _log.warning("%s", error)


class Catalogue:
    """The index of the store at `path`, opened; `create`: made, and brought up to date."""

    def __init__(
        self, path: Path, folders: Folders, *, create: bool, readonly: bool, indexed: bool = True
    ) -> None:
        """indexed: False for users, who may not read what the index says of others."""
        self._path = path / index.NAME
        self._folders = folders
        self._lock = threading.RLock()
        self._index: Index | None = None
        self._problem: StoreError | None = None
        self._indexed = indexed
        if not indexed:
            return
        try:
            self._index = Index(self._path, create=create, readonly=readonly)
        except IndexUnusable as error:
            if not create:
                self._problem = error
                return
            if not isinstance(error, IndexDamaged | IndexOutdated):
                raise
            _log.warning("%s; it is rebuilt now", error)
            self.rebuild()
            return
        if create:
            self.catch_up()

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    # ---------------------------------------------------------------- writing

    def announce(self, records: Iterable[Record]) -> None:
        """Before folders of new records are made. What fails is said by `put`."""
        with contextlib.suppress(StoreError), self._lock:
            self._usable().announce(records)

    def put(self, rows: Rows) -> None:
        """Records as they were written. StoreError; an index that is damaged is rebuilt."""
        with self._lock:
            try:
                self._usable().put(rows)
            except IndexDamaged as error:
                _log.warning("%s; it is rebuilt now", error)
                self.rebuild()

    def remove(self, ids: Iterable[str]) -> None:
        """Records that are gone. A row that stays points nowhere: readers ignore it."""
        with contextlib.suppress(StoreError), self._lock:
            if self._index is not None:
                self._index.remove(ids)

    def rebuild(self) -> None:
        """Set the index aside, make a new one, fill it."""
        with self._lock:
            self._set_aside()
            self.catch_up()

    def _set_aside(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
        index.set_aside(self._path)
        self._index = Index(self._path, create=True, readonly=False)

    def catch_up(self, tell: Damage = warn) -> tuple[int, int]:
        """Bring the index to what the folders say; how many rows were made, and removed.

        As many at a time as fit into little memory, each of them in a transaction of its own.
        """
        with self._lock:
            own = self._usable()
            made = sum(self._refresh(own, ids, tell) for ids in _in_parts(self._folders.each()))
            removed, last = 0, ""
            while ids := own.ids(last, _TOGETHER):
                gone = [id for id in ids if self._folders.stamp(id) is None]
                own.remove(gone)
                removed, last = removed + len(gone), ids[-1]
            own.forget_signatures()
            own.set_boot(_boot())
            own.shrink()
            return made, removed

    def _refresh(self, own: Index, ids: Ids, tell: Damage) -> int:
        """Make the rows anew whose records are other ones than those that they were made from."""
        stamps = own.stamps(ids)
        changed = []
        for id in ids:
            was, now = stamps.get(id), self._folders.stamp(id)
            if now is not None and was in (now, (LATER, now[1])):
                continue
            record = self.read_if_whole(id, tell)
            with contextlib.suppress(OSError, StoreError):
                on_disk = self._folders.on_disk(id)
                if record is not None and on_disk is not None:
                    changed.append((record, on_disk))
        own.put(changed)
        return len(changed)

    def keep(self, id: str, kept: bool) -> None:
        with self._lock:
            self._usable().keep(id, kept)

    def refresh(self) -> int:
        """Make the rows anew that an older version made, of 100,000 in minutes; how many."""
        count = 0
        while ids := self._usable().outdated(_TOGETHER):
            with self._lock:
                own = self._usable()
                own.settle(ids)  # what cannot be read is not tried again
                count += self._refresh(own, ids, warn)
        return count

    def repair(self, tell: Damage, *, alone: bool) -> tuple[int, int, bool]:
        """Make each row anew; how many, how many were removed, and whether the index was replaced.

        alone: no other process uses the store. Else an index that is damaged stays: they would go
        on with the one that was set aside.
        """
        with self._lock:
            replaced = self._index is None
            if self._index is not None:
                try:
                    self._index.reread_all()
                except IndexDamaged:
                    replaced = True
            if replaced and not alone:
                raise self._problem or StoreError(f"{self._path}: damaged")
            if replaced:
                self._set_aside()
            return *self.catch_up(tell), replaced

    # ---------------------------------------------------------------- reading

    def find(self, wanted: Filter, tell: Damage) -> Iterator[Found]:
        """What may match, newest first. What is damaged is told when it is come across."""
        try:
            whole, pages = self._is_whole(), self._pages(wanted)
            first = next(pages, None)
        except StoreError as error:
            if self._indexed:
                tell(error)
            whole, pages, first = False, iter(()), None
        found = pages if first is None else _chain(first, pages)
        if not whole:
            found = heapq.merge(self._unindexed(tell), found, key=lambda one: one[:2], reverse=True)
        return found

    def count(self, wanted: Filter, tell: Damage) -> int:
        """How many match, as far as the index knows."""
        with self._lock:
            count = 0
            whole = False
            try:
                count, whole = self._usable().count(wanted), self._is_whole()
            except StoreError as error:
                if self._indexed:
                    tell(error)
        if not whole:
            others = self._unindexed(tell)
            count += sum(1 for _, _, r in others if r is not None and wanted.matches(r))
        return count

    def closed_since(self, mtime: int) -> Ids:
        """Ids of closed records whose file was written since then, ns since 1970."""
        if not self._indexed:
            return self._folders.ids()
        query = "SELECT id FROM deaths WHERE closed AND mtime >= :mtime"
        return [id for (id,) in self.query(query, {"mtime": mtime})]

    def beginning(self, prefix: str) -> Ids:
        """Ids on disk that begin so, in their order, also of damaged records."""
        with self._lock:
            try:
                found, whole = set(self._usable().beginning(prefix)), self._is_whole()
            except StoreError:
                found, whole = set(), False
        if not whole:
            found.update(id for id in self._folders.each() if id.startswith(prefix))
        return sorted(id for id in found if self._folders.stamp(id) or self._folders.orphan(id))

    def beside(self, ids: Iterable[str]) -> Ids:
        """Those that come right before and after each of these; all, where that is as quick."""
        with self._lock:
            try:
                if self._is_whole():
                    own = self._usable()
                    return [other for id in ids for other in own.beside(id)]
            except StoreError:
                pass
        return self._folders.ids()

    def query(self, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """What a query of `victims` gives. StoreError."""
        with self._lock:
            return self._usable().all(query, values)

    def read_if_whole(self, id: str, tell: Damage) -> Record | None:
        """The record; None if there is none, or it is damaged, which is told."""
        try:
            return self._folders.read(id)
        except NotFound:  # removed meanwhile, or not yet written
            if self._folders.orphan(id):
                error = StoreError(f"{self._folders.path / id}: has a core but no record.json")
                tell(error.advised(f"`coreward rm {id}` removes it"))
        except StoreError as error:
            tell(error)
        return None

    # ---------------------------------------------------------------- inside

    def _usable(self) -> Index:
        if self._index is None:
            raise self._problem or StoreError(f"{self._path}: is closed")
        return self._index

    def _is_whole(self) -> bool:
        """Whether the index alone will do: it lacks no record, and there are many."""
        with self._lock:
            own = self._usable()
            return own.boot == _boot() and own.has_more_than(MANY)

    def _pages(self, wanted: Filter) -> Iterator[Found]:
        """The rows that match, newest first; the index is not kept busy between two pages."""
        last: Place | None = None
        more = True
        while more:
            with self._lock:
                page, more = self._usable().page(wanted, last)
            for time, id in page:
                yield time, id, None
                last = time, id

    def _unindexed(self, tell: Damage) -> list[Found]:
        """Records that have a folder and no row, newest first."""
        ids = set(self._folders.ids())
        with contextlib.suppress(StoreError), self._lock:
            ids.difference_update(self._usable().ids())
        found: list[Found] = []
        for id in ids:
            record = self.read_if_whole(id, tell)
            if record is not None:
                found.append((microseconds(record.time), id, record))
        return sorted(found, key=lambda one: one[:2], reverse=True)


def _chain(first: Found, others: Iterator[Found]) -> Iterator[Found]:
    yield first
    yield from others


def _in_parts(ids: Iterator[str]) -> Iterator[Ids]:
    while part := list(islice(ids, _TOGETHER)):
        yield part


def _boot() -> str:
    """Of this boot (random(4))."""
    return _BOOT_ID.read_text().strip()
