"""Find the files of a dead process's objects, and their separate debugging information.

What is tried for an object: the program's own file as the caller has it; descriptors of mapped
files that were opened while the process was there, which reach deleted and replaced ones as well;
its path, beneath the process's root. Whether a file is the right one is decided by the build-id;
one without is believed only if it is not newer than what ran. Nothing is opened but by `files`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from collector.explain.elf_file import ElfFile
from collector.explain.files import Root, reopen

DELETED = " (deleted)"
_MAX_LINKED = 1 << 30  # bytes of a debug file whose checksum is computed
_CRC = struct.Struct("<I")
_DEBUG = PurePosixPath("/usr/lib/debug")


class DebugLink(NamedTuple):
    """The name of a file beside an object that has its debugging information, and its checksum."""

    name: str
    crc: int


class Finder:
    """Files as one dead process saw them.

    root: where its paths are looked up. exe: of the main program, as the caller names it, often a
    link of /proc. mapped: address in a mapping -> descriptor of its file, borrowed. changed:
    seconds of the epoch; a file without a build-id that was changed later is not believed.
    """

    def __init__(
        self, root: Root, exe: Path | None, mapped: Mapping[int, int], changed: float
    ) -> None:
        self._root, self._exe, self._mapped, self._changed = root, exe, mapped, changed
        self._host_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._host = Root(self._host_fd)  # it has debugging information of others as well

    @property
    def root(self) -> Root:
        """Where the process's paths are looked up."""
        return self._root

    @property
    def changed(self) -> float:
        """Seconds of the epoch: what was changed later was so after the process began."""
        return self._changed

    def close(self) -> None:
        os.close(self._host_fd)

    def objects(
        self, path: str, start: int, end: int, *, main: bool, has_build_id: bool
    ) -> Iterator[int]:
        """Descriptors to read the object that was mapped at [start, end), the best ones first.

        Each is the caller's to close. Raises OSError, saying why there is none, after the last.
        """
        if main and self._exe is not None:
            with contextlib.suppress(OSError):
                yield _open_trusted(self._exe)
        for address, fd in self._mapped.items():
            if start <= address < end:
                with contextlib.suppress(OSError):
                    yield reopen(fd)
        name = path.removesuffix(DELETED)
        if name != path and not has_build_id:
            raise OSError("it was deleted or replaced, and has no build-id to find it by")
        fd = self._root.open(name)
        if not has_build_id and os.fstat(fd).st_ctime > self._changed:
            os.close(fd)
            raise OSError("its file is newer than what ran, and there is no build-id to compare")
        yield fd

    def debug_files(
        self, path: str, build_id: str | None, link: DebugLink | None
    ) -> Iterator[tuple[str, int]]:
        """Names and descriptors of files that may have the debugging information of an object.

        link: what it says itself. Without a build-id only files with the link's checksum.
        """
        roots = (self._root, self._host)
        if build_id is not None:
            for root in roots:
                with contextlib.suppress(OSError):
                    yield f"{build_id}.debug", root.open_debug(build_id)
        if link is None:
            return
        folder = PurePosixPath(path).parent
        for root in roots:
            for place in (folder, folder / ".debug", _DEBUG / folder.relative_to("/")):
                if root is self._host and place.parts[: len(_DEBUG.parts)] != _DEBUG.parts:
                    continue  # beside its own program, not beside one of the host's
                with contextlib.suppress(OSError):
                    fd = root.open(str(place / link.name))
                    if build_id is not None or _checksum(fd) == link.crc:
                        yield str(place / link.name), fd
                    else:
                        os.close(fd)

    def supplementary(self, path: str, other: str) -> Iterator[tuple[str, int]]:
        """The file that dwz(1) put parts of `path` into; `other`: its name, as seen from there."""
        name = str(PurePosixPath("/usr/lib/debug/.build-id", path).parent / other)
        for root in (self._root, self._host):
            with contextlib.suppress(OSError):
                yield name, root.open(name)


def debug_link(fd: int) -> DebugLink | None:
    """What an object says of a file with its debugging information; None: nothing of use."""
    try:
        data = ElfFile(fd).section(".gnu_debuglink")
    except (ValueError, struct.error):
        return None
    name, _, _ = data.partition(b"\0")
    at = (len(name) + 4) & -4  # the checksum is aligned
    if not name or b"/" in name or name in (b".", b"..") or len(data) < at + _CRC.size:
        return None
    return DebugLink(os.fsdecode(name), _CRC.unpack_from(data, at)[0])


def _checksum(fd: int) -> int | None:
    """CRC-32 of a file, from its start; None: it is too large."""
    if os.fstat(fd).st_size > _MAX_LINKED:
        return None
    crc = position = 0
    while data := os.pread(fd, 1 << 20, position):
        crc = zlib.crc32(data, crc)
        position += len(data)
    return crc


def _open_trusted(path: Path) -> int:
    """The program's own file as the caller names it: a regular file."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return reopen(fd)
    finally:
        os.close(fd)
