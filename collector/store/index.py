"""The index: an SQLite table that finds records fast. Not the truth: that is each `record.json`.

Whatever is here can be made again from the folders, so commits are not synced to disk, and an
index that is damaged is set aside and rebuilt; one of an older version is migrated (`schema`). WAL
mode (sqlite.org/wal.html): readers never block the writer. One connection may be used by several
threads; the catalogue's lock takes care of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from collector.errors import StoreError
from collector.model import Record
from collector.store.filter import Filter, glob, microseconds
from collector.store.folders import FILE_MODE, OnDisk, Stamp
from collector.store.schema import LATER, OLDEST, VERSION, migrate
from collector.store.signatures import COLUMNS, signature_columns
from collector.store.whose import kind_of, owner_of, service_of

NAME = "index.db"
ASIDE = "index.db.aside"
_BUSY_S = 10.0  # how long a writer waits for another one
_SUFFIXES = ("-wal", "-shm", "")  # the database last: until it goes, it is still damaged
_MOST_COPIED = 256 << 20  # bytes of an older index that a reader takes into memory
_PAGE = 256  # rows that are read at a time
_NO_ACCESS = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_COLUMNS = (
    *("id", "time", "cause", "signal", "comm", "exe", "unit"),
    *("closed", "inode", "mtime", "owner", "held"),
    *("other", "service", "kind", "kept"),
    *("namespace", "pod"),
    *COLUMNS,
)
_VALUES = ", ".join("?" * len(_COLUMNS))
_ANNOUNCE = f"INSERT OR IGNORE INTO deaths ({', '.join(_COLUMNS)}) VALUES ({_VALUES})"
# no REPLACE, of which triggers see no row go
_PUT = (
    f"INSERT INTO deaths ({', '.join(_COLUMNS)}) VALUES ({_VALUES}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[1:])
)
_NOT_YET = OnDisk((0, 0), 0, False)  # of a row that was made before its record
Place = tuple[int, str]  # of a row among all: time in microseconds, id
_TEXTS = "INSERT OR IGNORE INTO signatures VALUES (?, ?)"


class IndexUnusable(StoreError):
    """There is no index, or it cannot be opened; a reader can do without."""


class IndexDamaged(IndexUnusable):
    """The file is not an SQLite database, or is corrupt; it can be rebuilt."""


class IndexOutdated(IndexUnusable):
    """The file is of an older version; it can be rebuilt."""


class Index:
    """The open index. Every method raises StoreError: IndexUnusable if the file cannot be used,
    IndexDamaged or IndexOutdated if rebuilding it would help."""

    def __init__(self, path: Path, *, create: bool, readonly: bool) -> None:
        self.path = path
        self._readonly = readonly
        with _one_opener(path.parent, alone=create):
            if create:
                _create_file(path)
            _refuse_links(path)
            with self._errors():
                self._db = self._connect()
            try:
                self._prepare(create)
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    def announce(self, records: Iterable[Record]) -> None:
        """Put rows in of records that are about to be written; a row that is there stays."""
        rows = [_row(record, _NOT_YET) for record in records]
        with self._errors(), self._db:
            self._db.executemany(_ANNOUNCE, rows)

    def put(self, rows: Iterable[tuple[Record, OnDisk]]) -> None:
        with self._errors(), self._db:
            rows = list(rows)
            self._db.executemany(_PUT, [_row(*row) for row in rows])
            signed = (record.signature for record, _ in rows if record.signature is not None)
            self._db.executemany(_TEXTS, [(s.id, s.text) for s in signed if s.id is not None])

    def remove(self, ids: Iterable[str]) -> None:
        with self._errors(), self._db:
            self._db.executemany("DELETE FROM deaths WHERE id = ?", [(id,) for id in ids])

    def stamps(self, ids: Sequence[str]) -> dict[str, Stamp]:
        """Of these that have a row: the stamp of the record.json that it was made from."""
        marks = ", ".join("?" * len(ids))
        query = f"SELECT id, inode, mtime FROM deaths WHERE id IN ({marks})"
        with self._errors():
            rows = self._db.execute(query, ids).fetchall()
        return {id: (inode, mtime) for id, inode, mtime in rows}

    def ids(self, after: str = "", most: int | None = None) -> list[str]:
        """Ids of all rows in their order, or of so many behind this one."""
        query = "SELECT id FROM deaths WHERE id > ? ORDER BY id LIMIT ?"
        with self._errors():
            return [id for (id,) in self._db.execute(query, (after, -1 if most is None else most))]

    def has_more_than(self, count: int) -> bool:
        query = "SELECT 1 FROM deaths LIMIT 1 OFFSET ?"
        with self._errors():
            return self._db.execute(query, (count,)).fetchone() is not None

    def beginning(self, prefix: str) -> list[str]:
        """Ids that begin so, in their order."""
        query = "SELECT id FROM deaths WHERE id >= ? AND id < ? ORDER BY id"
        with self._errors():
            return [id for (id,) in self._db.execute(query, (prefix, f"{prefix}g"))]

    def beside(self, id: str) -> list[str]:
        """The ids before and after this one in their order, as far as there are any."""
        found = []
        with self._errors():
            for query in (
                "SELECT max(id) FROM deaths WHERE id < ?",
                "SELECT min(id) FROM deaths WHERE id > ?",
            ):
                found += [one for (one,) in self._db.execute(query, (id,)) if one is not None]
        return found

    def page(self, wanted: Filter, after: Place | None) -> tuple[list[Place], bool]:
        """The newest rows that match, or those that come after `after`; and whether there are more.

        What comes between two pages is in the second one, or in none: nothing comes twice.
        """
        conditions, values = _conditions(wanted)
        if after is not None:
            conditions.append("(time, id) < (?, ?)")
            values += after
        query = (
            f"SELECT time, id FROM deaths{_where(conditions)} "
            f"ORDER BY time DESC, id DESC LIMIT {_PAGE}"
        )
        with self._errors():
            found = self._db.execute(query, values).fetchall()
        return found, len(found) == _PAGE

    def count(self, wanted: Filter) -> int:
        """How many rows match."""
        conditions, values = _conditions(wanted)
        query = f"SELECT count(*) FROM deaths{_where(conditions)}"
        with self._errors():
            found: int = self._db.execute(query, values).fetchone()[0]
        return found

    @property
    def boot(self) -> str | None:
        """The boot in which the index was last found to have all folders; see schema."""
        with self._errors():
            row = self._db.execute("SELECT value FROM state WHERE name = 'boot'").fetchone()
        return None if row is None else str(row[0])

    def set_boot(self, boot: str) -> None:
        with self._errors(), self._db:
            self._db.execute("INSERT OR REPLACE INTO state VALUES ('boot', ?)", (boot,))

    def all(self, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """What a query of `retained` gives."""
        with self._errors():
            return self._db.execute(query, values).fetchall()

    def keep(self, id: str, kept: bool) -> None:
        with self._errors(), self._db:
            self._db.execute("UPDATE deaths SET kept = ? WHERE id = ?", (kept, id))

    def reread_all(self) -> None:
        """Have each row made anew from its record by the next `Catalogue.catch_up`."""
        with self._errors(), self._db:
            self._db.execute("UPDATE deaths SET inode = 0, mtime = 0")

    def outdated(self, most: int) -> list[str]:
        """So many ids of rows that an older version made."""
        query = "SELECT id FROM deaths WHERE inode = ? LIMIT ?"
        with self._errors():
            return [id for (id,) in self._db.execute(query, (LATER, most))]

    def settle(self, ids: Iterable[str]) -> None:
        """Have these rows differ from their records."""
        with self._errors(), self._db:
            self._db.executemany("UPDATE deaths SET inode = 0 WHERE id = ?", [(id,) for id in ids])

    def forget_signatures(self) -> None:
        """Take out the texts of signatures of which no death is on record any more."""
        with self._errors(), self._db:
            self._db.execute(
                "DELETE FROM signatures WHERE NOT EXISTS "
                "(SELECT 1 FROM deaths WHERE deaths.signature = signatures.id)"
            )

    def shrink(self) -> None:
        """Give back the memory of pages that are kept for the next query."""
        with self._errors():
            self._db.execute("PRAGMA shrink_memory")

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={'ro' if self._readonly else 'rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, check_same_thread=False)
        db.create_function("matches", 2, glob, deterministic=True)
        db.execute("PRAGMA synchronous = NORMAL")  # of each connection, unlike WAL
        return db

    def _size(self) -> int:
        """Bytes of the database."""
        (pages,), (page,) = (
            self._db.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size")
        )
        return int(pages * page)

    def _use_newer_copy(self) -> None:
        """In place of a file of an older version a copy in memory, which becomes one of this
        version: the file itself may be that of an agent which has not been replaced yet. Without
        it each record would be read: 48 s for 100,000, this takes a second."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._db.backup(copy)
        except BaseException:
            copy.close()
            raise
        self._db.close()
        self._db = copy
        copy.create_function("matches", 2, glob, deterministic=True)

    def _prepare(self, create: bool) -> None:
        """Check the schema; make it in a new file. A first read opens all files of the WAL."""
        with self._errors():
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")
                problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if problem != "ok":
                    raise IndexDamaged(f"{self.path}: damaged: {problem}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreError(
                    f"{self.path}: has version {version}, this coreward knows versions up to "
                    f"{VERSION}: it was written by a newer coreward; use that one"
                )
            if OLDEST <= version < VERSION and self._readonly and self._size() <= _MOST_COPIED:
                self._use_newer_copy()
            elif 0 < version < VERSION and (not create or version < OLDEST):
                raise IndexOutdated(
                    f"{self.path}: has version {version}, of an older coreward; the agent brings "
                    "it up to date when it starts"
                )
            if version == 0 and not create:
                raise IndexDamaged(f"{self.path}: damaged: it has no tables")
            if version < VERSION:
                migrate(self._db, version)
            self._db.execute("SELECT id FROM deaths LIMIT 1").fetchone()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_damage(error):
                raise IndexDamaged(
                    f"{self.path}: damaged: {error}; the agent rebuilds it when it starts"
                ) from error
            if _primary_code(error) in _NO_ACCESS:
                raise IndexUnusable(f"{self.path}: {error}") from error
            raise StoreError(f"{self.path}: {error}") from error


def remove(path: Path) -> None:
    """Remove an index that nobody has open."""
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename an index, so that a new one can be made in its place."""
    with _one_opener(path.parent, alone=True):
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(path.with_name(ASIDE + suffix))


def _row(record: Record, on_disk: OnDisk) -> tuple[object, ...]:
    time = microseconds(record.time)
    fields = (record.cause.value, record.signal, record.comm, record.exe, record.unit)
    closed = record.reason is not None
    held = (record.core_size or 0) if record.core is not None else 0
    owner, service = owner_of(record), service_of(record)
    of_whom = (on_disk.other, service, kind_of(record, owner, service), on_disk.kept)
    row = record.id, time, *fields, closed, *on_disk.stamp, owner, held, *of_whom
    pod = (None, None) if record.pod is None else (record.pod.namespace, record.pod.name)
    return *row, *pod, *signature_columns(record)


def _conditions(wanted: Filter) -> tuple[list[str], list[object]]:
    """The filter in SQL."""
    conditions: list[str] = []
    values: list[object] = []
    for condition, value in (
        ("time >= ?", wanted.since and microseconds(wanted.since)),
        ("time < ?", wanted.until and microseconds(wanted.until)),
        ("cause = ?", wanted.cause and wanted.cause.value),
        ("signal = ?", wanted.signal),
        ("signature = ?", wanted.signature),
        (_glob("comm", wanted.comm), wanted.comm),
        (_glob("exe", wanted.exe), wanted.exe),
        (_glob("unit", wanted.unit), wanted.unit),
        (_glob("namespace", wanted.namespace), wanted.namespace),
        (_glob("pod", wanted.pod), wanted.pod),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if wanted.closed is not None:
        conditions.append("closed" if wanted.closed else "NOT closed")  # as the index has it
    if wanted.kept is not None:
        conditions.append("kept" if wanted.kept else "NOT kept")
    return conditions, values


def _glob(column: str, pattern: str | None) -> str:
    """SQLite's own test where it means the same, for it is much faster: only its classes differ."""
    classes = pattern is not None and "[" in pattern
    return f"matches(?, {column})" if classes else f"{column} GLOB ?"


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _is_damage(error: sqlite3.Error) -> bool:
    # SQLITE_ERROR: "no such table" or column, in a file that claims to be ours
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return _primary_code(error) in damage


def _primary_code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
    return code & 0xFF


@contextlib.contextmanager
def _one_opener(directory: Path, *, alone: bool) -> Iterator[None]:
    """Keep openers apart from whoever creates or sets aside the file (flock on the folder)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _create_file(path: Path) -> None:
    """Make the file ourselves: SQLite gives its -wal and -shm the same mode (0600)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, FILE_MODE)
    except FileExistsError:
        return
    try:
        os.fchmod(fd, FILE_MODE)
    finally:
        os.close(fd)


def _refuse_links(path: Path) -> None:
    for suffix in _SUFFIXES:
        file = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise StoreError(f"{file}: not a plain file; refused")
