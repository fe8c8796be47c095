"""The folder `crashes`: the stored cores, compressed ones too, as plain ELF files."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from collector.elfcore.frames import FrameCache
from collector.elfcore.reader import CoreFile
from collector.elfcore.stored import StoredBytes, size_of
from collector.errors import CoreFormatError, StoreError
from collector.model import Cause
from collector.mount.tree import About, OpenCore, Viewer
from collector.ranges import Range
from collector.store.ids import is_id
from collector.store.store import Store

SUFFIX = ".core"
CACHE = 64 << 20  # bytes of decompressed frames of all cores together
_AHEAD = 2  # threads that decompress ahead of readers
_REMEMBERED = 1 << 14  # sizes and owners of cores
_AT_SECURE = 23  # <elf.h>
_AUXV = struct.Struct("<QQ")


class StoredCore:
    """A core of the store. An `OpenCore`."""

    lasting = True

    def __init__(self, path: Path, cache: FrameCache) -> None:
        """CoreFormatError if its seek table is damaged; OSError as open(2)."""
        self._stored = StoredBytes(path, cache)

    def size(self) -> int:
        return self._stored.size

    def is_ready(self) -> bool:
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        call()

    def read(self, offset: int, length: int) -> bytes:
        return self._stored.read(offset, length)

    def data_at(self, offset: int) -> Range | None:
        return self._stored.data_at(offset)

    def idle(self, give_up: Callable[[], None]) -> bool:
        return False

    def close(self) -> None:
        self._stored.close()


class Crashes:
    """`ID.core` for each core of the store. A `Folder`.

    A user who does not see everything sees the crashes that the kernel handed over of processes
    with his uid; a snapshot, or a killed process, may have been one that he could not look into.
    """

    def __init__(self, store: Store, cache: int = CACHE) -> None:
        """cache: bytes."""
        self._store = store
        self._cache = FrameCache(cache, _AHEAD)
        self._lock = threading.Lock()
        self._sizes: OrderedDict[tuple[str, int, int], int] = OrderedDict()
        self._owners: OrderedDict[str, int] = OrderedDict()

    def names(self, viewer: Viewer) -> Iterator[str]:
        for id in self._store.core_ids():
            if self._may(id, viewer):
                yield id + SUFFIX

    def about(self, name: str, viewer: Viewer) -> About:
        path = self._path(name, viewer)
        found = path.stat()
        size = self._size(path, found)
        uid = viewer or 0
        return About(size, found.st_blocks * 512, found.st_mtime_ns, uid)

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        return StoredCore(self._path(name, viewer), self._cache)

    def _path(self, name: str, viewer: Viewer) -> Path:
        id = name.removesuffix(SUFFIX)
        if name.endswith(SUFFIX) and is_id(id) and self._may(id, viewer):
            path = self._store.core_file(id)
            if path is not None:
                return path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _may(self, id: str, viewer: Viewer) -> bool:
        if viewer is None:
            return True
        with self._lock:
            known = self._owners.get(id)
        if known is None and (known := self._owner(id)) is not None:
            with self._lock:
                self._owners[id] = known
                if len(self._owners) > _REMEMBERED:
                    self._owners.popitem(last=False)
        return known == viewer

    def _owner(self, id: str) -> int | None:
        """The uid that may read this core, beside those who may read all."""
        with contextlib.suppress(StoreError, CoreFormatError, OSError):
            record, path = self._store.get(id), self._store.core_file(id)
            if record.cause is Cause.SIGNAL and path is not None and not _gained_rights(path):
                return record.uid
        return None

    def _size(self, path: Path, found: os.stat_result) -> int:
        """Of the plain file; remembered, for `ls -l` asks for each. A damaged one has none."""
        key = (str(path), found.st_ino, found.st_mtime_ns)
        with self._lock:
            known = self._sizes.get(key)
        if known is not None:
            return known
        try:
            size = size_of(path)
        except CoreFormatError:
            size = 0
        with self._lock:
            self._sizes[key] = size
            if len(self._sizes) > _REMEMBERED:
                self._sizes.popitem(last=False)
        return size


def _gained_rights(path: Path) -> bool:
    """Whether the program had more rights than its user (setuid, file capabilities): AT_SECURE."""
    with CoreFile(path) as core:
        auxv = core.auxv or b""
    pairs: dict[int, int] = dict(_AUXV.iter_unpack(auxv[: len(auxv) & -_AUXV.size]))
    return pairs.get(_AT_SECURE, 1) != 0
