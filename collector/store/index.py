"""The index: an SQLite table that finds records fast. Not the truth: that is each `record.json`.

Whatever is here can be made again from the folders, so commits are not synced to disk, and an
index that is damaged, or of an older version, is set aside and rebuilt. WAL mode
(sqlite.org/wal.html): readers never block the writer. One connection may be used by several
threads; the store's lock takes care of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from collector.errors import StoreError
from collector.model import Record
from collector.store.filter import Filter, glob, microseconds
from collector.store.folders import FILE_MODE, Stamp
from collector.store.room import HeldCore, owner_of

SCHEMA_VERSION = 3
NAME = "index.db"
ASIDE = "index.db.aside"
_BUSY_S = 10.0  # how long a writer waits for another one
_SUFFIXES = ("-wal", "-shm", "")  # the database last: until it goes, it is still damaged
_SCHEMA = """
CREATE TABLE deaths (
  id TEXT PRIMARY KEY,
  time INTEGER NOT NULL,  -- microseconds since 1970
  cause TEXT NOT NULL,
  signal INTEGER,
  comm TEXT NOT NULL,
  exe TEXT,
  unit TEXT,
  closed INTEGER NOT NULL,  -- 0: its writer has not closed it, or was killed before it did
  inode INTEGER NOT NULL,  -- inode and mtime_ns of the record.json that was read
  mtime INTEGER NOT NULL,
  owner TEXT NOT NULL,
  held INTEGER NOT NULL  -- bytes that its core has on disk
) WITHOUT ROWID;
CREATE INDEX deaths_by_time ON deaths (time);
CREATE INDEX deaths_open ON deaths (closed) WHERE NOT closed;
CREATE INDEX deaths_held ON deaths (time) WHERE held > 0 AND closed;
"""
_NO_ACCESS = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_UPSERT = "INSERT OR REPLACE INTO deaths VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


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

    def put(self, rows: Iterable[tuple[Record, Stamp]]) -> None:
        with self._errors(), self._db:
            self._db.executemany(_UPSERT, [_row(record, stamp) for record, stamp in rows])

    def remove(self, id: str) -> None:
        with self._errors(), self._db:
            self._db.execute("DELETE FROM deaths WHERE id = ?", (id,))

    def stamps(self) -> dict[str, Stamp]:
        """All ids, with the stamp of the record.json that each row was made from."""
        with self._errors():
            rows = self._db.execute("SELECT id, inode, mtime FROM deaths").fetchall()
        return {id: (inode, mtime) for id, inode, mtime in rows}

    def find(self, wanted: Filter) -> list[tuple[int, str]]:
        """(time in microseconds, id) of the rows that match."""
        conditions: list[str] = []
        values: list[object] = []
        for condition, value in (
            ("time >= ?", wanted.since and microseconds(wanted.since)),
            ("time < ?", wanted.until and microseconds(wanted.until)),
            ("cause = ?", wanted.cause and wanted.cause.value),
            ("signal = ?", wanted.signal),
            ("matches(?, comm)", wanted.comm),
            ("matches(?, exe)", wanted.exe),
            ("matches(?, unit)", wanted.unit),
            ("closed = ?", wanted.closed),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._errors():
            return self._db.execute(f"SELECT time, id FROM deaths{where}", values).fetchall()

    def cores(self) -> list[HeldCore]:
        """The cores of all closed records, that of the oldest death first."""
        query = "SELECT owner, id, held FROM deaths WHERE held > 0 AND closed ORDER BY time"
        with self._errors():
            return [HeldCore(*row) for row in self._db.execute(query)]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A transaction in which no other process writes the index."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                yield

    def change(self, changed: Iterable[tuple[Record, Stamp]], gone: Iterable[str]) -> None:
        """Within `alone`: put rows in, take rows out."""
        self._db.executemany(_UPSERT, [_row(record, stamp) for record, stamp in changed])
        self._db.executemany("DELETE FROM deaths WHERE id = ?", [(id,) for id in gone])

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={'ro' if self._readonly else 'rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, check_same_thread=False)
        db.create_function("matches", 2, glob, deterministic=True)
        return db

    def _prepare(self, create: bool) -> None:
        """Check the schema; make it in a new file. A first read opens all files of the WAL."""
        with self._errors():
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if problem != "ok":
                    raise IndexDamaged(f"{self.path}: damaged: {problem}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path}: has version {version}, this coreward knows versions up to "
                    f"{SCHEMA_VERSION}: it was written by a newer coreward; use that one"
                )
            if 0 < version < SCHEMA_VERSION:
                raise IndexOutdated(
                    f"{self.path}: has version {version}, of an older coreward; the agent rebuilds "
                    "it when it starts"
                )
            if version == 0 and not create:
                raise IndexDamaged(f"{self.path}: damaged: it has no tables")
            if version == 0:
                with self._db:
                    self._db.executescript(
                        f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
                    )
            self._db.execute("SELECT count(*) FROM deaths").fetchone()

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


def _row(record: Record, stamp: Stamp) -> tuple[object, ...]:
    time = microseconds(record.time)
    fields = (record.cause.value, record.signal, record.comm, record.exe, record.unit)
    closed = record.reason is not None
    held = (record.core_size or 0) if record.core is not None else 0
    return record.id, time, *fields, closed, *stamp, owner_of(record), held


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
