"""What people wrote about signatures: one small file for each, `notes/<signature>.json`, 0600.

Kept apart from records and index: it outlives the deaths that it is about.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec

from collector.errors import StoreError
from collector.linux.atomic import atomic_file
from collector.signature.note import Note
from collector.store.encoding import json_text

FOLDER = "notes"
_MOST = 256 << 10  # bytes of one note
_ID = re.compile(r"[0-9a-f]{12}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Notes:
    """The notes of a store. `store` is its folder, which must be trusted."""

    def __init__(self, store: Path) -> None:
        self._folder = store / FOLDER

    def read(self, signature: str) -> Note | None:
        """None: there is none. StoreError names a file that is damaged."""
        path = self._path(signature)
        try:
            with open(os.open(path, _READ), "rb") as file:
                data = file.read(_MOST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=Note)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{path}: damaged: {error}") from None

    def write(self, signature: str, note: Note) -> None:
        """In place of an earlier one; on disk when it returns."""
        path = self._path(signature)
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(0o700)
            with atomic_file(path) as fd, open(fd, "wb", closefd=False) as file:
                file.write(json_text(note).encode())
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror}") from error

    def remove(self, signature: str) -> bool:
        """Whether there was one."""
        path = self._path(signature)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"{path}: cannot be removed: {error.strerror}") from error
        return True

    def ids(self) -> list[str]:
        """The signatures that have one."""
        try:
            paths = list(self._folder.iterdir())
        except OSError:  # nobody has written one yet
            return []
        return sorted(p.stem for p in paths if _ID.fullmatch(p.stem) and p.suffix == ".json")

    def _path(self, signature: str) -> Path:
        if not _ID.fullmatch(signature):
            raise ValueError(f"{signature!r} is not the id of a signature")
        return self._folder / f"{signature}.json"
