"""The folders of the crashes: `crashes/<id>/` with `record.json` and the core. The truth.

Knows nothing of the index. Everything is opened relative to a descriptor of `crashes` and never
through a symbolic link, so that a link planted inside the store leads nowhere. Folders are 0700
and files 0600 whatever the umask. Names that begin with `.tmp-` are unfinished: not yet visible
to any reader, removed by `clean_partial` after a crash of whoever was writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector.errors import NotFound, StoreError
from collector.linux import acl
from collector.linux.descriptors import Spare
from collector.linux.syncfs import syncfs
from collector.model import Record
from collector.store import encoding
from collector.store.ids import checked, is_id

RECORD = "record.json"
CORES = ("core", "core.zst")
KEEP = "keep"
TEMPORARY = ".tmp-"
MAX_RECORD = 64 << 20  # bytes; a larger record.json is not ours
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

_SPARE = 4  # descriptors: of `crashes`, of a record's folder, of its file, and one more
_PATIENCE_S = 10.0  # with others who take all descriptors
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo must not block us
_NOT_PLAIN = (errno.ELOOP, errno.ENOTDIR)

Stamp = tuple[int, int]  # inode and mtime_ns of record.json: changes with every write


class OnDisk(NamedTuple):
    """A record as it lies on the disk."""

    stamp: Stamp
    other: int  # bytes that its folder takes without the core
    kept: bool  # somebody wants it to stay: there is a file KEEP beside it


class Folders:
    """The folder `crashes` of a store. A context manager; safe for several processes."""

    def __init__(self, path: Path, own: Callable[[], Iterator[str]] | None = None) -> None:
        """own: the ids of those that this user may read, where he may not list all."""
        self.path = path
        self._own = own
        self._fd = os.open(path, _DIRECTORY if own is None else _DIRECTORY | os.O_PATH)
        self._spare = Spare(_SPARE)

    def close(self) -> None:
        self._spare.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def ids(self) -> list[str]:
        """Ids of all folders, also of those that hold no record (yet)."""
        if self._own is not None:
            return [*self._own()]
        return [name for name in _names(self._fd) if is_id(name)]

    def each(self) -> Iterator[str]:
        """The same one by one, however many there are."""
        if self._own is not None:
            yield from self._own()
            return
        fd = os.open(".", _DIRECTORY, dir_fd=self._fd)
        try:
            with os.scandir(fd) as entries:
                yield from (entry.name for entry in entries if is_id(entry.name))
        finally:
            os.close(fd)

    def stamp(self, id: str) -> Stamp | None:
        """What changes with each write of the record; None: there is no record."""
        try:
            found = os.stat(f"{checked(id)}/{RECORD}", dir_fd=self._fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        return found.st_ino, found.st_mtime_ns

    def has(self, id: str) -> bool:
        """Whether there is a record."""
        return self.stamp(id) is not None

    def create(self, id: str) -> Path:
        """The folder of this id, made if need be."""
        path = self.path / checked(id)
        if not self._make(id):
            with self._folder(id):  # refuses what is not a plain folder
                pass
        return path

    def _make(self, id: str, *, sync: bool = True) -> bool:
        """Make the folder, if it is not there yet; whether it was made."""
        try:
            os.mkdir(checked(id), DIRECTORY_MODE, dir_fd=self._fd)
        except FileExistsError:
            return False
        os.chmod(id, DIRECTORY_MODE, dir_fd=self._fd)  # the umask may have taken bits away
        if sync:
            os.fsync(self._fd)
        return True

    def write(self, record: Record, *, sync: bool = True) -> OnDisk:
        """Replace `record.json` atomically, and durably unless the caller sees to it by `sync`.

        One at a time: there are descriptors for it also when the process has no others left.
        StoreError names the file.
        """
        data = encoding.encode(record)
        try:
            write = partial(self._write, record.id, data, sync=sync)
            return self._spare.attempt(write, _PATIENCE_S)
        except OSError as error:
            raise StoreError(
                f"{self.path / record.id / RECORD}: cannot be written: {error.strerror}"
            ) from error

    def _write(self, id: str, data: bytes, *, sync: bool) -> OnDisk:
        with self._locked(fcntl.LOCK_SH):
            self._make(id, sync=sync)
            try:
                fd = os.open(id, _DIRECTORY, dir_fd=self._fd)
            except OSError as error:
                if error.errno in _NOT_PLAIN:
                    raise StoreError(f"{self.path / id}: {_why(error)}") from error
                raise
            try:
                return _on_disk(fd, _replace(fd, RECORD, data, sync=sync))
            finally:
                os.close(fd)

    def on_disk(self, id: str) -> OnDisk | None:
        """How the record of this id lies on the disk; None: there is none."""
        stamp = self.stamp(id)
        if stamp is None:
            return None
        with self._folder(id) as folder:
            return _on_disk(folder, stamp)

    def keep(self, id: str, kept: bool) -> OnDisk:
        """Mark the record as to be kept, or no more. NotFound if there is none."""
        stamp = self.stamp(id)
        if stamp is None:
            raise NotFound(f"no record {id} in {self.path.parent}")
        with self._folder(id) as folder:
            if kept:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(KEEP, flags, FILE_MODE, dir_fd=folder))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(KEEP, dir_fd=folder)
            os.fsync(folder)
            return _on_disk(folder, stamp)

    def unfinished(self) -> int:
        """How many things there are that writers have not finished yet, or have left behind."""
        count = sum(name.startswith(TEMPORARY) for name in _names(self._fd))
        for id in self.each():
            with contextlib.suppress(OSError, StoreError), self._folder(id) as folder:
                count += sum(name.startswith(TEMPORARY) for name in _names(folder))
        return count

    def share(self, id: str, uid: int) -> None:
        """Let this user read the record and its core. OSError, also where that cannot be done."""
        with self._folder(id) as folder:
            for name in _names(folder):
                if name.startswith(TEMPORARY):
                    continue
                fd = os.open(name, _FILE, dir_fd=folder)
                try:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        acl.grant(fd, uid, acl.READ, owner=6)
                finally:
                    os.close(fd)
            acl.grant(folder, uid, acl.READ | acl.SEARCH, owner=7)

    def sync(self) -> None:
        """Make durable what was written without. OSError if something could not be."""
        syncfs(self._fd)

    def read(self, id: str) -> Record:
        """The record of this id. NotFound if there is none, StoreError if it is damaged."""
        file = self.path / checked(id) / RECORD
        try:
            with self._folder(id) as folder:
                data = _contents(folder, RECORD, file)
        except FileNotFoundError:
            raise NotFound(f"no record {id} in {self.path.parent}").advised(
                "`coreward list` shows all"
            ) from None
        except OSError as error:
            raise StoreError(f"{file}: cannot be read: {_why(error)}") from error
        try:
            record = encoding.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"{file}: damaged: {error}").advised(_removes(id)) from error
        if record.id != id:
            why = f"it says that it is record {record.id!r}"
            raise StoreError(f"{file}: damaged: {why}").advised(_removes(id))
        if record.time.tzinfo is None:
            raise StoreError(f"{file}: damaged: its time has no zone").advised(_removes(id))
        return record

    def orphan(self, id: str) -> bool:
        """Whether the folder holds a finished core and no record."""
        try:
            with self._folder(id) as folder:
                names = _names(folder)
        except (OSError, StoreError):
            return False
        return RECORD not in names and any(core in names for core in CORES)

    def core(self, record: Record) -> Path | None:
        """Path of the core that the record names; None if it names none or the file is gone."""
        if record.core is None:
            return None
        path = self.path / checked(record.id) / record.core
        if record.core not in CORES:
            raise StoreError(f"record {record.id}: {record.core!r} is not a core's file name")
        try:
            with self._folder(record.id) as folder:
                found = os.stat(record.core, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotFound):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: not a plain file; refused")
        return path

    def core_file(self, id: str) -> Path | None:
        """Path of the whole core in the folder of this id, whatever its record says; else None."""
        for name in CORES:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = os.stat(f"{checked(id)}/{name}", dir_fd=self._fd, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    return self.path / id / name
        return None

    def remove_core(self, record: Record) -> int:
        """Remove the core that the record names; returns the bytes of disk freed."""
        if record.core not in CORES:
            return 0
        with self._folder(record.id) as folder:
            return _unlink(record.core, folder)

    def remove(self, ids: Iterable[str], gone: Callable[[list[str]], None]) -> dict[str, int]:
        """Remove these folders; returns the bytes of disk freed, by id, of those that there were.

        In two steps: first they become invisible (each is renamed to `.tmp-rm-…`), which is made
        durable for all of them at once and told to `gone`; then their files go. Killed in between,
        it leaves only what `clean_partial` takes.
        """
        doomed: dict[str, str] = {}
        with self._locked(fcntl.LOCK_EX):
            for id in ids:
                name = f"{TEMPORARY}rm-{checked(id)}-{os.urandom(4).hex()}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(id, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                    doomed[id] = name
        if doomed:
            os.fsync(self._fd)
            gone(list(doomed))
        return {id: _delete(name, self._fd) for id, name in doomed.items()}

    def clean_partial(self) -> int:
        """Remove what killed writers left; returns how many things. See Store.clean_partial."""
        with self._locked(fcntl.LOCK_EX):
            removed = _delete_temporaries(self._fd)
            for id in self.ids():
                with contextlib.suppress(OSError, StoreError):
                    with self._folder(id) as folder:
                        removed += _delete_temporaries(folder)
                    os.rmdir(id, dir_fd=self._fd)  # only if nothing is left in it
                    removed += 1
        return removed

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """flock(2) on `crashes`: writers of records share it, so that no folder is renamed or
        cleaned away under them."""
        fd = os.open(".", _DIRECTORY, dir_fd=self._fd)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _folder(self, id: str) -> Iterator[int]:
        """A descriptor of a crash's folder; NotFound, or StoreError if it is not a folder."""
        try:
            fd = os.open(checked(id), _DIRECTORY, dir_fd=self._fd)
        except FileNotFoundError:
            raise NotFound(f"no record {id} in {self.path.parent}") from None
        except OSError as error:
            raise StoreError(f"{self.path / id}: {_why(error)}") from error
        try:
            yield fd
        finally:
            os.close(fd)


def _names(directory: int) -> list[str]:
    # a descriptor of its own: the position of a shared one would be shared by all threads
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(fd)


def _replace(folder: int, name: str, data: bytes, *, sync: bool) -> Stamp:
    """Write a file of the folder under a temporary name, make it durable, and rename it."""
    temporary = f"{TEMPORARY}{name}-{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, FILE_MODE, dir_fd=folder)
    try:
        os.fchmod(fd, FILE_MODE)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
        written = os.fstat(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    if sync:
        os.fsync(folder)
    return written.st_ino, written.st_mtime_ns


def _on_disk(folder: int, stamp: Stamp) -> OnDisk:
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False).st_blocks for entry in entries}
    blocks = sum(size for name, size in found.items() if name not in CORES)
    return OnDisk(stamp, blocks * 512 + os.fstat(folder).st_blocks * 512, KEEP in found)


def _contents(folder: int, name: str, file: Path) -> bytes:
    fd = os.open(name, _FILE, dir_fd=folder)
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StoreError(f"{file}: not a plain file; refused")
        data = stream.read(MAX_RECORD + 1)
    if len(data) > MAX_RECORD:
        raise StoreError(f"{file}: damaged: larger than {MAX_RECORD} bytes")
    return data


def _removes(id: str) -> str:
    return f"`coreward rm {id}` removes it, and its core"


def _why(error: OSError) -> str:
    """The error in words; links inside the store get the words they deserve."""
    if error.errno in _NOT_PLAIN:
        return "a link, or not what it should be; refused"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied: crashes are readable by their owner only; try as root"
    return error.strerror or str(error)


def _delete_temporaries(directory: int) -> int:
    removed = 0
    for name in _names(directory):
        if name.startswith(TEMPORARY) and not _in_use(name, directory):
            _delete(name, directory)
            removed += 1
    return removed


def _in_use(name: str, directory: int) -> bool:
    """Whether a living process holds the flock(2) on this temporary file."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError:
        return False  # gone, or a link: nobody of ours holds it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _delete(name: str, directory: int) -> int:
    """Delete a file or a tree, following no link; returns the bytes of disk it had."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno not in _NOT_PLAIN:
            raise
        return _unlink(name, directory)
    try:
        freed = sum(_delete(entry, fd) for entry in _names(fd))
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=directory)
    return freed


def _unlink(name: str, directory: int) -> int:
    try:
        size = os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return 0
    return size
