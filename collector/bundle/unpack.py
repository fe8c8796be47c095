"""Unpack a bundle of unknown origin into a folder of our own.

Its first member, the manifest, says what follows; it is read and checked before anything else is,
and nothing is made that it does not list. What the archive makes us read beside contents (heads,
names, maps of holes) has a bound of its own, so has what a decompressor remembers. Only regular
files are taken. Who made the folder removes it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from pathlib import Path
from typing import IO, Protocol, cast

from collector.bundle.format import (
    BESIDE,
    MANIFEST,
    MAX_MANIFEST,
    RECORD,
    SYSROOT,
    BundledFile,
    Manifest,
    check_values,
    debug_member,
    in_sysroot,
    parse,
)
from collector.elfcore.stored import is_compressed
from collector.errors import BundleError, CoreFormatError
from collector.explain.mapped import build_id_of_file

_BLOCK = 1 << 20
_MAX_WINDOW = 128 << 20  # bytes that a decompressor remembers
_MAX_HEAD = 1 << 20  # bytes of a member's heads, with a map of holes
_ELF = b"\x7fELF"
_FULL = 1 << 20  # bytes that must stay free on the disk
_NO_BUNDLE = "no bundle of coreward's"
# what `tarfile` raises: IndexError where a map of holes is cut off, RecursionError for a head
# before a head before a head, and so on
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError, RecursionError)


class Unpacked:
    """An opened bundle, and the folder that its files go to."""

    def __init__(self, source: Path, manifest: Manifest, folder: Path) -> None:
        self.source, self.manifest, self.folder = source, manifest, folder

    @property
    def store(self) -> Path:
        """A store with the one record."""
        return self.folder / "store"

    @property
    def record_folder(self) -> Path:
        return self.store / "crashes" / self.manifest.id

    @property
    def sysroot(self) -> Path:
        """The root folder of the dead process, with what of it the bundle has."""
        return self.folder / SYSROOT

    def place(self, name: str) -> Path:
        """Where a member goes."""
        if name.startswith(f"{SYSROOT}/"):
            return self.folder / name
        return self.record_folder / name

    def program(self) -> Path | None:
        """The main program's file; None: the bundle does not have it."""
        files = (one.file for one in self.manifest.modules if one.main)
        return next((self.place(file) for file in files if file is not None), None)

    def folders(self) -> list[Path]:
        """Those with modules, for debuggers that look for the last part of a name."""
        files = (one.file for one in self.manifest.modules)
        return list(dict.fromkeys(self.place(file).parent for file in files if file is not None))


def open_bundle(path: Path) -> int:
    """A descriptor of what seems to be a bundle: all that is read of it is read by that, for a name
    may mean another file a moment later. BundleError says what else it is; OSError as open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BundleError(f"{path}: not a file")
        if os.pread(fd, len(_ELF), 0) == _ELF:
            raise BundleError(f"{path}: no bundle, but an ELF file; a debugger takes it as it is")
        if not is_compressed(fd):
            raise BundleError(f"{path}: no bundle: `coreward export ID --bundle -o FILE` makes one")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unpack(path: Path, fd: int, folder: Path, *, whole: bool) -> Unpacked:
    """Unpack a bundle that is open into the folder, which must be empty, and only ours.

    path: its name, for messages. fd: of `open_bundle`; it is closed. whole: not only the record and
    what lies beside it. BundleError, which names the file; OSError if it cannot be read, or the
    folder cannot be written.
    """
    with open(fd, "rb") as file:
        import zstandard  # noqa: PLC0415 (only who writes or reads one)

        bounded = _Bounded(
            zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
                file, read_across_frames=True
            )
        )
        try:
            bounded.allow(MAX_MANIFEST + _MAX_HEAD)
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
                return _Unpacking(path, tar, bounded, folder).run(whole=whole)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        except zstandard.ZstdError as error:
            raise BundleError(f"{path}: {_NO_BUNDLE}, or damaged: {error}") from None
        except _DAMAGED as error:
            raise BundleError(f"{path}: {_NO_BUNDLE}, or damaged: {error}") from None


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Bounded:
    """A stream that goes forward only, and no further than was allowed. As `tarfile` takes one."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._at, self._end = stream, 0, 0

    def allow(self, size: int) -> None:
        """So many bytes from here on."""
        self._end = self._at + size

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end of the stream."""
        if not 0 <= size <= self._end - self._at:
            raise BundleError("it is damaged, or made to fill memory: a member has endless heads")
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        while self._at < position:
            if not self.read(min(_BLOCK, position - self._at)):
                raise BundleError("it is cut off")


class _Unpacking:
    def __init__(self, path: Path, tar: tarfile.TarFile, bounded: _Bounded, folder: Path) -> None:
        self._path, self._tar, self._bounded, self._folder = path, tar, bounded, folder

    def run(self, *, whole: bool) -> Unpacked:
        manifest = parse(self._manifest())
        found = Unpacked(self._path, manifest, self._folder)
        found.record_folder.mkdir(parents=True, mode=0o700)
        found.sysroot.mkdir(mode=0o700)
        if whole:
            self._check_room(manifest)
        for file in manifest.files:
            if not whole and file.name not in (RECORD, *BESIDE):
                break  # all that is wanted comes before
            self._unpack(found, file)
        if whole:
            _give_names(found)
        return found

    def _manifest(self) -> bytes:
        member = self._tar.next()
        if member is None or member.name != MANIFEST or not member.isreg():
            raise BundleError(f"{_NO_BUNDLE}: it does not begin with {MANIFEST}")
        if member.size > MAX_MANIFEST:
            raise BundleError(f"{MANIFEST} has {member.size >> 20} MiB")
        return self._bounded.read(member.size)

    def _check_room(self, manifest: Manifest) -> None:
        """Before anything is unpacked. A core's holes take none: it is seen when it comes."""
        wanted = sum(file.size for file in manifest.files if file.name != "core")
        self._check_free(wanted)

    def _check_free(self, wanted: int) -> None:
        about = os.statvfs(self._folder)
        free = about.f_bavail * about.f_frsize
        if wanted > free - _FULL:
            raise BundleError(
                f"to unpack it takes {wanted >> 20} MiB, and {self._folder.parent} has "
                f"{free >> 20} free: TMPDIR may name a place with more"
            )

    def _unpack(self, found: Unpacked, file: BundledFile) -> None:
        self._bounded.allow(_MAX_HEAD)
        member = self._tar.next()
        if member is None:
            raise BundleError(f"it is cut off before {file.name!r}")
        if (member.name, member.size) != (file.name, file.size):
            raise BundleError(
                f"its manifest tells of {file.name!r} with {file.size} bytes, and "
                f"{member.name[:80]!r} with {member.size} comes"
            )
        if not (member.isreg() or member.type == tarfile.GNUTYPE_SPARSE):
            raise BundleError(f"{file.name!r} is no regular file")
        parts = _parts(member)
        self._check_free(sum(size for _, size in parts))
        place = found.place(file.name)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._copy(member, parts, fd)
            if file.name == RECORD:
                check_values(RECORD, os.pread(fd, file.size, 0))
            if file.build_id is not None:
                _check_build_id(fd, file)
        finally:
            os.close(fd)
        os.utime(place, (member.mtime, member.mtime))  # a debugger says which of two is newer

    def _copy(self, member: tarfile.TarInfo, parts: list[tuple[int, int]], fd: int) -> None:
        """The stream is at the member's data, which has only what is no hole."""
        os.ftruncate(fd, member.size)
        for start, size in parts:
            done = 0
            while done < size:
                self._bounded.allow(_BLOCK)
                data = self._bounded.read(min(_BLOCK, size - done))
                if not data:
                    raise BundleError(f"it is cut off in {member.name!r}")
                _write(fd, data, start + done)
                done += len(data)


def _parts(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Place and size of what is no hole, rising."""
    found: list[tuple[int, int]] | None = member.sparse  # type: ignore[assignment]
    if found is None:
        return [(0, member.size)]
    parts, end = [], 0
    for start, size in found:
        if not end <= start <= start + size <= member.size:
            raise BundleError(f"{member.name!r} has a map of holes that is impossible")
        end = start + size
        if size:
            parts.append((start, size))
    return parts


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _check_build_id(fd: int, file: BundledFile) -> None:
    try:
        own = build_id_of_file(fd)
    except (OSError, CoreFormatError) as error:
        raise BundleError(f"{file.name!r}: {error}") from None
    if own != file.build_id:
        raise BundleError(
            f"{file.name!r} is not what the manifest says: its build-id is {own}, not "
            f"{file.build_id}"
        )


def _give_names(found: Unpacked) -> None:
    """The further names by which debuggers ask for files: as hard links, which lead nowhere."""
    for module in found.manifest.modules:
        if module.file is not None:
            for name in module.names:
                _link(found, module.file, in_sysroot(name))
    for file in found.manifest.files:
        if file.build_id is not None and file.name.startswith(f"{SYSROOT}/usr/lib/debug/"):
            _link(found, file.name, debug_member(file.build_id))


def _link(found: Unpacked, file: str, name: str) -> None:
    """A name that a file or a folder has already stays theirs."""
    place = found.folder / name
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.link(found.folder / file, place, follow_symlinks=False)
