"""The store: one folder per crash, and an index over them. For several processes at once.

    DIR/index.db              SQLite, WAL; can be rebuilt from the folders
    DIR/routine.jsonl         ends of processes that were no crashes
    DIR/crashes/<id>/         0700
        record.json           the truth about this death
        core or core.zst      only ever whole: written under a `.tmp-` name, then renamed

It neither captures nor explains: it keeps what it is given. Every record that was once
`put` is listed: `catalogue` says how index and folders agree.

A writer puts a first record *before* it writes a core into the folder, and puts the final one
after: then a crash of the writer cannot leave a core that nobody can name.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType

import msgspec

from collector.errors import Ambiguous, NotFound, StoreError, StoreOfOthers
from collector.model import Capture, Cause, Outcome, Record
from collector.store import encoding, index, routine
from collector.store.catalogue import Catalogue, Damage, Ids, Rows, warn
from collector.store.filter import Filter
from collector.store.folders import DIRECTORY_MODE, Folders
from collector.store.ids import ID_DIGITS, checked, is_id
from collector.store.notes import Notes
from collector.store.owners import PASSABLE, Owners, reader_of
from collector.store.recent import Recent
from collector.store.room import cores_to_remove
from collector.store.signatures import Signatures
from collector.store.victims import Victims

LATEST = "latest"
Records = list[Record]
_log = logging.getLogger(__name__)
_ARE_THEY_CAUGHT = "`coreward doctor` says whether deaths are caught here"
_CANDIDATES = 8  # ids that an Ambiguous names
_TOGETHER = 64  # records that are removed at a time: others wait meanwhile to write theirs


class _Put:
    """A record that waits for its turn, and what became of it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.done = False
        self.error: StoreError | None = None


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.repair` found."""

    records: int  # in the index, as they are on disk
    rows_removed: int  # of the index, whose records were gone
    replaced: bool  # the index was damaged or missing, and was set aside
    damaged: list[str]  # folders whose record cannot be read, and why
    unfinished: int  # files and folders that are being written, or that killed writers have left


class Store:
    """The crash records under `path`. A context manager; threads may share it, forks may not.

    create: make what is missing, and bring the index up to date with the folders: the agent.
    readonly: nothing on disk is changed; without it `remove` works and a store must exist.
    Raises StoreError if there is no store, or it is not safe to use.
    """

    def __init__(self, path: Path, *, create: bool, readonly: bool = False) -> None:
        if create and readonly:
            raise ValueError("a store cannot be created readonly")
        self.path = path
        self.notes = Notes(path)
        self.routine = routine.RoutineEnds(path)
        self.min_free = 0  # bytes, half of the policy's; no new record would leave less
        self._readonly = readonly
        self._lock = threading.Lock()
        self._waiting: deque[_Put] = deque()
        self._own = threading.local()  # .rows: of a batch of this thread
        self._owners = Owners(path)
        self._user = None if create or os.geteuid() == 0 else _user_of(self._owners)
        try:
            if create:
                _make(path)
            self._folders = Folders(
                path / "crashes", self._own_ids if self._user is not None else None
            )
        except OSError as error:
            kind = StoreOfOthers if isinstance(error, PermissionError) else StoreError
            advice = _ARE_THEY_CAUGHT if isinstance(error, FileNotFoundError) else None
            raise kind(_no_store(path, error)).advised(advice) from error
        try:
            self._catalogue = Catalogue(
                path,
                self._folders,
                create=create,
                readonly=readonly,
                indexed=self._user is None,
            )
            self.signatures = Signatures(self._catalogue.query)
        except BaseException:
            self._folders.close()
            raise

    def _own_ids(self) -> Iterator[str]:
        """Of the user who reads what is his in a store that is root's."""
        assert self._user is not None
        return self._owners.of(self._user)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._catalogue.close()
        self._folders.close()

    # ---------------------------------------------------------------- writing

    def put(self, record: Record) -> None:
        """Keep this record, in place of an earlier one with its id.

        On disk (synced) when it returns, or unchanged when it raises StoreError; the one
        exception, an index that cannot be written, is said in the message. ValueError if the
        time has no zone. Names that are not UTF-8 are kept with \\xNN for each such byte.
        """
        self._writable()
        self._check_room(checked(record.id))
        if record.time.tzinfo is None:
            raise ValueError(f"record {record.id}: its time has no zone")
        record = encoding.utf8_only(record)
        rows: Rows | None = getattr(self._own, "rows", None)
        if rows is not None:
            self._announce([record])
            rows.append((record, self._folders.write(record, sync=False)))
            return
        put = _Put(record)
        self._waiting.append(put)
        with self._lock:  # whoever has it writes for all that wait, and one flush does for them
            if not put.done:
                self._put_waiting()
        if put.error is not None:
            raise put.error

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """What this thread puts meanwhile is visible at once, and on disk (synced) at the end.

        Then it is also in the index. Raises as `put` does, of the last of them.
        """
        rows: Rows = []
        self._own.rows = rows
        try:
            yield
        finally:
            del self._own.rows
            if rows:
                with self._lock:
                    self._finish(rows)

    def _put_waiting(self) -> None:
        puts = [self._waiting.popleft() for _ in range(len(self._waiting))]
        self._announce(put.record for put in puts)
        rows: Rows = []
        for put in puts:
            put.done = True
            try:
                rows.append((put.record, self._folders.write(put.record, sync=len(puts) == 1)))
            except StoreError as error:
                put.error = error
        if not rows:
            return
        try:
            self._finish(rows, synced=len(puts) == 1)
        except StoreError as error:
            for put in puts:
                put.error = put.error or error

    def _announce(self, records: Iterable[Record]) -> None:
        """Have those that are new in the index before they are on disk: see catalogue."""
        new = [record for record in records if not self._folders.has(record.id)]
        if new:
            self._catalogue.announce(new)

    def _share(self, records: Iterable[Record]) -> None:
        """Let users read what is theirs, where the file system can say so."""
        for record in records:
            uid = reader_of(record)
            if uid is None:
                continue
            try:
                self._folders.share(record.id, uid)
                self._owners.add(uid, record.id)
            except (OSError, StoreError) as error:
                _log.warning("record %s stays root's: %s", record.id, error)

    def sweep(self) -> int:
        """Remove what users have removed of theirs; how many records."""
        self._writable()
        return self._owners.sweep(self._folders.read, self.remove)

    def _finish(self, rows: Rows, *, synced: bool = False) -> None:
        """Make durable what is written, and put it into the index."""
        self._share(record for record, _ in rows)
        try:
            if not synced:
                self._folders.sync()
        except OSError as error:
            raise StoreError(f"{self.path}: not written to disk: {error.strerror}") from error
        try:
            self._catalogue.put(rows)
        except StoreError as error:
            names = ", ".join(record.id for record, _ in rows[:_CANDIDATES])
            raise StoreError(f"record {names} is written, but not indexed: {error}") from error

    def folder(self, id: str) -> Path:
        """The folder of this id, created (0700) if need be. Cores go there, under a `.tmp-`
        name until they are whole. StoreError, as `put`: also if there is no room for a new one."""
        self._writable()
        self._check_room(checked(id))
        try:
            return self._folders.create(id)
        except OSError as error:
            raise StoreError(f"{self._folders.path / id}: {error.strerror}") from error

    def remove(self, id: str) -> int:
        """Remove a record and its core; returns the bytes of disk freed. NotFound if none.

        A record that is removed while its death is still being captured comes back when the
        capture ends.
        """
        for _, freed in self.remove_all([id]):
            return freed
        raise NotFound(f"no record {id} in {self.path}").advised("`coreward list` shows all")

    def remove_all(self, ids: Iterable[str]) -> Iterator[tuple[str, int]]:
        """The same for many: those that there were, with the bytes of disk freed.

        Some at a time. Their folders go first, in one rename each, then their rows, then their
        files. Killed after the rename, a row points nowhere, which readers ignore and the next
        agent clears away.
        """
        self._writable()
        if self._user is not None:  # the agent does it for him: see owners
            yield from ((id, 0) for id in ids if self._owners.give_up(self._user, id))
            return
        left = iter(ids)
        while some := list(islice(left, _TOGETHER)):
            try:
                freed = self._folders.remove(some, self._catalogue.remove)
            except OSError as error:
                path = self._folders.path
                raise StoreError(f"{path}: {some[0]}: not removed: {error.strerror}") from error
            yield from freed.items()

    def forget(self, ids: Iterable[str]) -> None:
        """Take rows out of the index whose records are gone: others may have removed them."""
        self._catalogue.remove([id for id in ids if not self.has(id)])

    def make_room(
        self, owner: str, size: int, wanted: int, writing: Mapping[str, int], *, own: bool = False
    ) -> int:
        """Remove cores, so that a new one of `owner` has room; see `cores_to_remove`.

        own: only cores of this owner. Their records stay, and say so. Returns the bytes of disk
        freed: 0 where nobody has to give, or what could be had is less than `wanted`.
        """
        self._writable()
        old = self.victims.cores()
        if own:
            old = {owner: old.get(owner, 0)}
        ids = cores_to_remove(old, self.victims.cores_of, writing, owner, size, wanted)
        return self.remove_cores(ids, f"removed to make room for a core of {owner}")

    def remove_cores(self, ids: Iterable[str], why: str) -> int:
        """Remove the cores of these records, which stay and say why; returns the bytes freed."""
        self._writable()
        left = iter(ids)
        freed = 0
        while some := list(islice(left, _TOGETHER)):
            with self.batch():
                freed += sum(self._remove_core(id, why) for id in some)
        return freed

    def _remove_core(self, id: str, why: str) -> int:
        """The file goes first: killed before the record says so, its record names a file that is
        gone, which readers can tell."""
        try:
            record = self._folders.read(id)
            freed = self._folders.remove_core(record)
        except NotFound:
            self._catalogue.remove([id])
            return 0
        except StoreError as error:
            _log.warning("%s; it is removed with its core: %s", error, why)
            return sum(size for _, size in self.remove_all([id]))
        except OSError as error:
            raise StoreError(f"{self._folders.path / id}: not removed: {error.strerror}") from error
        self.put(
            msgspec.structs.replace(
                record,
                capture=Capture.RECORD,
                outcome=Outcome.REMOVED,
                core=None,
                core_size=None,
                core_memory=None,
                lost={**record.lost, "core": why},
            )
        )
        return freed

    def keep(self, id: str, kept: bool = True) -> None:
        """Mark a record as to be kept, or no more: retention takes it last. NotFound if none."""
        self._writable()
        try:
            self._folders.keep(id, kept)
        except OSError as error:
            raise StoreError(f"{self._folders.path / id}: {error.strerror}") from error
        self._catalogue.keep(id, kept)

    def refresh(self) -> int:
        """Make rows of the index anew that an older version made; how many. It may take long."""
        self._writable()
        return self._catalogue.refresh()

    def repair(self, *, alone: bool) -> Repair:
        """Make the index anew from the folders. alone: no other process uses the store."""
        self._writable()
        damage: list[str] = []
        made, removed, replaced = self._catalogue.repair(
            lambda error: damage.append(str(error)), alone=alone
        )
        return Repair(
            records=made,
            rows_removed=removed,
            replaced=replaced,
            damaged=damage,
            unfinished=self._folders.unfinished(),
        )

    def clean_partial(self) -> int:
        """Remove what killed writers left behind; returns how many things that were.

        `.tmp-…` files and folders go, unless a living process holds a flock(2) on them; so do
        empty folders. Call it when no capture is running. A folder with a whole core but no
        record stays: inventing a record would be worse; `list` names it as damaged, and
        `remove` takes it away.
        """
        self._writable()
        try:
            return self._folders.clean_partial()
        except OSError as error:
            raise StoreError(f"{self._folders.path}: not cleaned: {error.strerror}") from error

    # ---------------------------------------------------------------- reading

    def resolve(self, name: str) -> str:
        """The id that `latest` or an unambiguous prefix means; also of a damaged record.

        NotFound, or Ambiguous naming the candidates.
        """
        if name == LATEST:
            newest = self.list(limit=1)
            if not newest:
                raise NotFound(f"no deaths on record in {self.path}").advised(_ARE_THEY_CAUGHT)
            return newest[0].id
        prefix = name.lower()
        if not prefix or len(prefix) > ID_DIGITS or set(prefix) - set("0123456789abcdef"):
            raise NotFound(
                f"{name!r} is not an ID: give `{LATEST}`, or the first digits of an ID as "
                "`coreward list` shows it"
            )
        found = self._catalogue.beginning(prefix)
        if not found:
            raise NotFound(f"no record begins with {prefix!r}; `coreward list` shows all")
        if len(found) > 1:
            names = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
            raise Ambiguous(f"{len(found)} records begin with {prefix!r}: {names}").advised(
                "give more digits"
            )
        return found[0]

    def get(self, name: str) -> Record:
        """The record that `latest` or an unambiguous prefix of an id means.

        NotFound, Ambiguous, or StoreError naming the file that is damaged.
        """
        whole = is_id(name) and self.has(name)
        return self._folders.read(name if whole else self.resolve(name))

    def ids(self) -> Ids:
        """All ids on disk in no order, damaged ones too; not folders without anything whole."""
        folders = self._folders
        return [id for id in folders.ids() if folders.stamp(id) or folders.orphan(id)]

    def has(self, id: str) -> bool:
        """Whether there is a record of exactly this id."""
        return self._folders.has(id)

    def count(self) -> int:
        """How many records there are on disk."""
        return sum(1 for id in self._folders.each() if self._folders.has(id))

    def is_kept(self, id: str) -> bool:
        """Whether somebody has marked it as to be kept."""
        found = self._folders.on_disk(id)
        return found is not None and found.kept

    @property
    def victims(self) -> Victims:
        """What may go, for retention."""
        return Victims(self._catalogue.query)

    @property
    def recent(self) -> Recent:
        """Who died in the last day, from the index."""
        return Recent(self._catalogue.query)

    def closed_since(self, mtime: int) -> Ids:
        """Ids of closed records that were written since then, ns since 1970; where users ask, of
        all that are theirs."""
        return self._catalogue.closed_since(mtime)

    def count_matching(self, wanted: Filter, tell: Damage | None = None) -> int:
        """How many records the index knows that match."""
        return self._catalogue.count(wanted, tell or warn)

    def beside(self, ids: Iterable[str]) -> Ids:
        """Ids that must be looked at to tell these apart from all others."""
        return self._catalogue.beside(ids)

    def list(
        self,
        *,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        cause: Cause | None = None,
        signal: int | None = None,
        comm: str | None = None,
        exe: str | None = None,
        unit: str | None = None,
        signature: str | None = None,
        closed: bool | None = None,
        limit: int | None = None,
        on_damage: Damage | None = None,
    ) -> Records:
        """The records that match all conditions, newest first.

        Times are aware: since <= time < until. comm, exe and unit are shell globs. closed: False
        for records whose writer has not closed them, or was killed before it did. What is
        damaged is left out and told to `on_damage`, by default the log.
        """
        wanted = Filter(
            since=since,
            until=until,
            cause=cause,
            signal=signal,
            comm=comm,
            exe=exe,
            unit=unit,
            signature=signature,
            closed=closed,
        )
        return [*islice(self.each(wanted, on_damage), limit)]

    def each(self, wanted: Filter, on_damage: Damage | None = None) -> Iterator[Record]:
        """The same one by one, however many there are."""
        tell = on_damage or warn
        for _, id, known in self._catalogue.find(wanted, tell):
            record = known or self._catalogue.read_if_whole(id, tell)
            if record is None or not wanted.matches(record):
                continue
            if wanted.kept is None or self.is_kept(id) == wanted.kept:
                yield record

    def beginning(self, prefix: str, most: int) -> Records:
        """Some records whose ids begin so; without a prefix the newest ones."""
        if not prefix:
            return self.list(limit=most, on_damage=lambda _: None)
        found = (
            self._catalogue.read_if_whole(id, lambda _: None)
            for id in islice(self._catalogue.beginning(prefix), most)
        )
        return [record for record in found if record is not None]

    def place(self, record: Record) -> Path:
        """The record's folder, which need not exist."""
        return self._folders.path / checked(record.id)

    def core_path(self, record: Record) -> Path | None:
        """Where the record's core is; None if it has none or the file is gone.

        StoreError if it is not a plain file inside the record's folder.
        """
        return self._folders.core(record)

    def core_ids(self) -> Ids:
        """Ids of all folders with a whole core, in no order; no record is read."""
        folders = self._folders
        return [id for id in folders.ids() if folders.core_file(id)]

    def core_file(self, id: str) -> Path | None:
        """Where the core of exactly this id is, also if its record is damaged; None: it has none.
        ValueError if it is no id."""
        return self._folders.core_file(id)

    def free_bytes(self) -> int:
        """Bytes that may still be written to the store's file system."""
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    # ---------------------------------------------------------------- inside

    def _check_room(self, id: str) -> None:
        """Whether a record may be begun; one that is there may grow."""
        if self.min_free and (free := self.free_bytes()) < self.min_free and not self.has(id):
            raise StoreError(
                f"{self.path}: no room for new records: {free >> 20} MiB are free, and they end at "
                f"{self.min_free >> 20} MiB, half of store.min_free"
            )

    def _writable(self) -> None:
        if self._readonly:
            raise StoreError(f"{self.path}: is open for reading only")


def _user_of(owners: Owners) -> int | None:
    """Who reads what is his in a store of root's; None: whose store it is, or nobody."""
    uid = os.geteuid()
    return uid if owners.has(uid) else None


def remove_unused(path: Path) -> None:
    """Remove a store that nobody has open, if it has no folder of a crash; else it stays whole."""
    with contextlib.suppress(OSError):
        (path / "crashes").rmdir()
        index.remove(path / index.NAME)
        routine.remove(path)
        path.rmdir()


def _make(path: Path) -> None:
    """Make the store's folders. One that is there already must be ours, and private."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(DIRECTORY_MODE)
        path.chmod(DIRECTORY_MODE)  # the umask may have taken bits away
    _own(path, path.stat())
    crashes = path / "crashes"
    with contextlib.suppress(FileExistsError):
        crashes.mkdir(DIRECTORY_MODE)
        crashes.chmod(DIRECTORY_MODE)
    found = crashes.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{crashes}: a link, or not a folder; refused")
    _own(crashes, found)


def _own(path: Path, found: os.stat_result) -> None:
    """Refuse what belongs to others; close to them what is a store (or empty) and stands open."""
    if found.st_uid != os.geteuid():
        raise StoreOfOthers(f"{path}: belongs to uid {found.st_uid}, not to us; refused")
    if stat.S_IMODE(found.st_mode) & 0o077 & ~PASSABLE == 0:
        return
    names = [entry.name for entry in path.iterdir()]
    if names and index.NAME not in names and path.name != "crashes":
        raise StoreError(
            f"{path}: is open to others and is not a store; use an empty folder, or chmod 0700 it"
        )
    path.chmod(DIRECTORY_MODE)


def _no_store(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f"{path}: no store there: nothing was ever recorded, or --store names another"
        case PermissionError():
            return f"{path}: permission denied: none of the crashes is yours to read; try as root"
        case NotADirectoryError():
            return f"{path}: not a store: a link, or not a folder"
    return f"{path}: {error.strerror}"
