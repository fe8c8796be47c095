"""The store: one folder per crash, and an index over them. For several processes at once.

    DIR/index.db              SQLite, WAL; can be rebuilt from the folders
    DIR/crashes/<id>/         0700
        record.json           the truth about this death
        core or core.zst      only ever whole: written under a `.tmp-` name, then renamed

It neither captures nor explains: it keeps what it is given. What the index does not know (its
writer was killed between the two writes) is found by looking at the folders, so every record
that was once `put` is listed.

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from collector.errors import Ambiguous, NotFound, StoreError, StoreOfOthers
from collector.model import Capture, Cause, Outcome, Record
from collector.store import encoding, index
from collector.store.filter import Filter, microseconds
from collector.store.folders import DIRECTORY_MODE, Folders, Stamp
from collector.store.ids import ID_DIGITS, checked, is_id
from collector.store.index import Index, IndexDamaged, IndexOutdated, IndexUnusable
from collector.store.room import cores_to_remove

LATEST = "latest"
Records = list[Record]
Ids = list[str]
Found = list[tuple[int, str, Record | None]]  # time in microseconds, id, record if it was read
Damage = Callable[[StoreError], None]
_log = logging.getLogger(__name__)
_CANDIDATES = 8  # ids that an Ambiguous names
Rows = list[tuple[Record, Stamp]]


class _Put:
    """A record that waits for its turn, and what became of it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.done = False
        self.error: StoreError | None = None


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
        self.min_free = 0  # bytes, half of the policy's; no new record would leave less
        self._readonly = readonly
        self._lock = threading.Lock()
        self._waiting: deque[_Put] = deque()
        self._own = threading.local()  # .rows: of a batch of this thread
        self._index: Index | None = None
        self._index_problem: StoreError | None = None
        try:
            if create:
                _make(path)
            self._folders = Folders(path / "crashes")
        except OSError as error:
            kind = StoreOfOthers if isinstance(error, PermissionError) else StoreError
            raise kind(_no_store(path, error)) from error
        try:
            self._open_index(create)
        except BaseException:
            self._folders.close()
            raise

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
        if self._index is not None:
            self._index.close()
            self._index = None
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

    def _finish(self, rows: Rows, *, synced: bool = False) -> None:
        """Make durable what is written, and put it into the index."""
        try:
            if not synced:
                self._folders.sync()
        except OSError as error:
            raise StoreError(f"{self.path}: not written to disk: {error.strerror}") from error
        try:
            if self._index is None:
                raise self._index_problem or StoreError(f"{self.path}: has no index")
            self._index.put(rows)
        except IndexDamaged as error:
            _log.warning("%s; it is rebuilt now", error)
            self._rebuild()
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

        The folder goes first, in one rename, then its row, then its files. Killed after the
        rename, the row points nowhere, which readers ignore and the next agent clears away. A
        record that is removed while its death is still being captured comes back when the
        capture ends.
        """
        self._writable()
        try:
            freed = self._folders.remove(id)
        except OSError as error:
            raise StoreError(f"{self._folders.path / id}: not removed: {error.strerror}") from error
        with self._lock, contextlib.suppress(StoreError):
            if self._index is not None:
                self._index.remove(id)
        return freed

    def make_room(
        self, owner: str, size: int, wanted: int, writing: Mapping[str, int], *, own: bool = False
    ) -> int:
        """Remove cores, so that a new one of `owner` has room; see `cores_to_remove`.

        own: only cores of this owner. Their records stay, and say so. Returns the bytes of disk
        freed: 0 where nobody has to give, or what could be had is less than `wanted`.
        """
        self._writable()
        with self._lock:
            cores = [] if self._index is None else self._index.cores()
        if own:
            cores = [core for core in cores if core.owner == owner]
        ids = cores_to_remove(cores, writing, owner, size, wanted)
        return sum(
            self._remove_core(id, f"removed to make room for a core of {owner}") for id in ids
        )

    def _remove_core(self, id: str, why: str) -> int:
        """The file goes first: killed before the record says so, its record names a file that is
        gone, which readers can tell."""
        try:
            record = self._folders.read(id)
            freed = self._folders.remove_core(record)
        except NotFound:
            return 0
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
                raise NotFound(f"no deaths on record in {self.path}")
            return newest[0].id
        prefix = name.lower()
        if not prefix or len(prefix) > ID_DIGITS or set(prefix) - set("0123456789abcdef"):
            raise NotFound(
                f"{name!r} is not an ID: give `{LATEST}`, or the first digits of an ID as "
                "`coreward list` shows it"
            )
        found = sorted(id for id in self.ids() if id.startswith(prefix))
        if not found:
            raise NotFound(f"no record begins with {prefix!r}; `coreward list` shows all")
        if len(found) > 1:
            names = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
            raise Ambiguous(f"{len(found)} records begin with {prefix!r}: {names}")
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
        return self._folders.stamp(id) is not None

    def count(self) -> int:
        """How many records there are."""
        return sum(1 for id in self._folders.ids() if self._folders.stamp(id))

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
        closed: bool | None = None,
        limit: int | None = None,
        on_damage: Damage | None = None,
    ) -> Records:
        """The records that match all conditions, newest first.

        Times are aware: since <= time < until. comm, exe and unit are shell globs. closed: False
        for records whose writer has not closed them, or was killed before it did. What is
        damaged is left out and told to `on_damage`, by default the log.
        """
        tell = on_damage or (lambda error: _log.warning("%s", error))
        wanted = Filter(
            since=since,
            until=until,
            cause=cause,
            signal=signal,
            comm=comm,
            exe=exe,
            unit=unit,
            closed=closed,
        )
        found = self._find(wanted, tell)
        records: Records = []
        for _, id, known in sorted(found, key=lambda item: item[:2], reverse=True):
            if limit is not None and len(records) >= limit:
                break
            record = known or self._read_if_whole(id, tell)
            if record is not None and wanted.matches(record):
                records.append(record)
        return records

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

    def _find(self, wanted: Filter, tell: Damage) -> Found:
        """What may match."""
        found: Found = []
        indexed: set[str] = set()
        with self._lock:
            try:
                if self._index is None:
                    raise self._index_problem or StoreError(f"{self.path}: has no index")
                found = [(time, id, None) for time, id in self._index.find(wanted)]
                indexed = set(self._index.stamps())
            except StoreError as error:
                tell(error)
        for id in set(self._folders.ids()) - indexed:
            record = self._read_if_whole(id, tell)
            if record is not None:
                found.append((microseconds(record.time), id, record))
        return found

    def _read_if_whole(self, id: str, tell: Damage) -> Record | None:
        try:
            return self._folders.read(id)
        except NotFound:  # removed meanwhile, or not yet written
            if self._folders.orphan(id):
                tell(StoreError(f"{self._folders.path / id}: has a core but no record.json"))
        except StoreError as error:
            tell(error)
        return None

    def _open_index(self, create: bool) -> None:
        """Open the index; readers do without it if they must, the agent repairs it."""
        path = self.path / index.NAME
        try:
            self._index = Index(path, create=create, readonly=self._readonly)
        except IndexUnusable as error:
            if not create:
                self._index_problem = error
                return
            if not isinstance(error, IndexDamaged | IndexOutdated):
                raise
            _log.warning("%s; it is rebuilt now", error)
            self._rebuild()
            return
        if create:
            self._catch_up()

    def _rebuild(self) -> None:
        """Set the index aside, make a new one, fill it."""
        if self._index is not None:
            self._index.close()
            self._index = None
        path = self.path / index.NAME
        index.set_aside(path)
        self._index = Index(path, create=True, readonly=False)
        self._catch_up()

    def _catch_up(self) -> None:
        """Bring the index to what the folders say: after a kill, they may differ."""
        if self._index is None:
            return
        with self._index.alone():
            rows = self._index.stamps()
            on_disk = {id: self._folders.stamp(id) for id in self._folders.ids()}
            changed = []
            for id, stamp in on_disk.items():
                if stamp is not None and rows.get(id) != stamp:
                    record = self._read_if_whole(id, lambda error: _log.warning("%s", error))
                    if record is not None:
                        changed.append((record, stamp))
            gone = [id for id in rows if on_disk.get(id) is None]
            self._index.change(changed, gone)

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


def remove_unused(path: Path) -> None:
    """Remove a store that nobody has open, if it has no folder of a crash; else it stays whole."""
    with contextlib.suppress(OSError):
        (path / "crashes").rmdir()
        index.remove(path / index.NAME)
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
    if stat.S_IMODE(found.st_mode) & 0o077 == 0:
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
            return f"{path}: permission denied: crashes are readable by root only; try as root"
        case NotADirectoryError():
            return f"{path}: not a store: a link, or not a folder"
    return f"{path}: {error.strerror}"
