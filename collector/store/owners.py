"""What users see of the store: each the names of his own records, and nothing else.

    DIR/owners/UID/        the user's; made with his first record
        <id>               an empty file: this record is his
        <id>.gone          he has removed it: the agent does the rest

`DIR` and `DIR/crashes` can be passed through by all then, but not listed; a record's folder and its
files are readable to its owner by access control lists. Root never follows or reads what is in such
a folder: it takes the names, and only so many, and looks into the record itself whose it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from collector.errors import NotFound, StoreError
from collector.linux import acl
from collector.model import Record
from collector.store.ids import checked, is_id

NAME = "owners"
PASSABLE = 0o711  # of folders that users pass through
_GONE = ".gone"
_MOST = 10_000  # names of one user that are looked at
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_log = logging.getLogger(__name__)


def reader_of(record: Record) -> int | None:
    """The user who may read this record; None: root alone.

    What it says of somebody else's process that killed it, with its arguments, is not for him, nor
    are lines of the journal: they are of all that ran in its unit.
    """
    uid, killer = record.readable_by, record.killer
    by_other = killer is not None and killer.uid not in (None, uid)
    return None if by_other or record.logs or record.reason is None else uid


def for_its_reader(record: Record) -> Record:
    """The record as it is stored: without lines of the journal where they alone would keep it from
    its user. Of a system service they are worth more than that its user may look."""
    bare = msgspec.structs.replace(record, logs=None)
    unit = record.unit or ""
    if not record.logs or (unit.endswith(".service") and "/" not in unit) or not reader_of(bare):
        return record
    why = "left out, for its user may read this record, and not the journal"
    return msgspec.structs.replace(bare, lost={**record.lost, "logs": why})


class Owners:
    """Those of the store at `path`."""

    def __init__(self, path: Path) -> None:
        self._store = path
        self._path = path / NAME

    def add(self, uid: int, id: str) -> None:
        """This record is the user's. OSError, also where there are no access control lists."""
        place = self._path / str(uid)
        if not place.is_dir():
            self._make(uid, place)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(place / checked(id), flags, 0o600))

    def _make(self, uid: int, place: Path) -> None:
        for above in (self._store, self._store / "crashes", self._path):
            above.mkdir(exist_ok=True)
            above.chmod(PASSABLE)
        place.mkdir(0o700, exist_ok=True)
        fd = os.open(place, _DIRECTORY)
        try:
            acl.grant(fd, uid, acl.READ | acl.WRITE | acl.SEARCH, owner=7)
        finally:
            os.close(fd)

    def of(self, uid: int) -> Iterator[str]:
        """Ids of this user's records, without those that he has removed."""
        names = {*self._names(uid)}
        return (name for name in names if is_id(name) and f"{name}{_GONE}" not in names)

    def has(self, uid: int) -> bool:
        """Whether there is anything that this user may see."""
        with contextlib.suppress(PermissionError):
            return (self._path / str(uid)).is_dir()
        return False

    def give_up(self, uid: int, id: str) -> bool:
        """Have the agent remove the user's record; False: it is none of his."""
        place = self._path / str(uid)
        with contextlib.suppress(FileNotFoundError):
            (place / checked(id)).rename(place / f"{id}{_GONE}")
            return True
        return False

    def sweep(self, read: Callable[[str], Record], remove: Callable[[str], int]) -> int:
        """Remove what users have given up, and names whose records are gone; how many records."""
        removed = 0
        for uid in sorted(self._users()):
            for name in islice(self._names(uid), _MOST):
                id = name.removesuffix(_GONE)
                if not is_id(id):
                    continue  # his own affair
                try:
                    record = read(id)
                except NotFound:
                    self._forget(uid, name)
                    continue
                except StoreError as error:
                    _log.warning("%s", error)
                    continue
                if name.endswith(_GONE):
                    if record.readable_by == uid:
                        remove(id)
                        removed += 1
                    self._forget(uid, name)
        return removed

    def _forget(self, uid: int, name: str) -> None:
        with contextlib.suppress(OSError):  # a folder that he has made
            (self._path / str(uid) / name).unlink()

    def _users(self) -> list[int]:
        if not self._path.is_dir():
            return []
        return [int(entry.name) for entry in os.scandir(self._path) if entry.name.isdecimal()]

    def _names(self, uid: int) -> Iterator[str]:
        try:
            fd = os.open(self._path / str(uid), _DIRECTORY)
        except FileNotFoundError:
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            os.close(fd)
