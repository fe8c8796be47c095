"""Find what goes into a bundle beside the core: mapped objects, and their debug files.

They are found as the explaining process finds them (`explain.find`), beneath the same root, and
taken only if they are what was mapped: the build-id in the core's memory decides; of one without,
an ELF file that is not newer than the process is believed. What is not found is said.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import posixpath
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from collector.bundle.format import (
    MAX_FILES,
    BundledFile,
    BundledModule,
    debug_member,
    in_sysroot,
    is_path,
)
from collector.bundle.linked import linked_names, main_program
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.elf_file import ElfFile
from collector.explain.files import Root
from collector.explain.find import DELETED, Finder, debug_link
from collector.explain.mapped import (
    MappedFile,
    build_id_in_memory,
    build_id_of_file,
    mapped_objects,
)

_OTHER = "its file is another one than was mapped (build-id)"
_SPARE = 64  # descriptors that are left for others


class FoundFiles:
    """Open files by their member's name, and what is to be said of each module."""

    def __init__(self) -> None:
        self.modules: list[BundledModule] = []
        self.files: list[BundledFile] = []
        self.fds: dict[str, int] = {}
        self._build_ids: dict[str, str | None] = {}

    def __enter__(self) -> FoundFiles:
        return self

    def __exit__(self, *_: object) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])

    def add(self, name: str, fd: int, build_id: str | None) -> None:
        """Takes the descriptor; one that is there already is closed."""
        if name in self.fds:
            os.close(fd)
            return
        self.fds[name] = fd
        self._build_ids[name] = build_id
        self.files.append(BundledFile(name=name, size=os.fstat(fd).st_size, build_id=build_id))

    def build_id(self, name: str) -> str | None:
        return self._build_ids.get(name)


def find_files(core: CoreFile, *, changed: float, most: int, root: Path) -> FoundFiles:
    """Open the objects of a core's process. To be closed.

    changed: seconds of the epoch; a file without a build-id that was changed later is not believed.
    most: descriptors that may be open at a time. root: where paths are looked up.
    """
    found = FoundFiles()
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finder = Finder(Root(root_fd), None, {}, changed)
    try:
        search = _Search(core, finder, found, min(most - _SPARE, MAX_FILES - _SPARE))
        search.run()
    except BaseException:
        found.__exit__()
        raise
    finally:
        finder.close()
        os.close(root_fd)
    return found


class _Search:
    def __init__(self, core: CoreFile, finder: Finder, found: FoundFiles, most: int) -> None:
        self._core, self._finder, self._found, self._most = core, finder, found, most
        self._main = main_program(core.auxv or b"")
        self._names = sorted(linked_names(core.auxv or b"", core.read))

    def run(self) -> None:
        segments = [placed.segment for placed in self._core.segments]
        objects = mapped_objects(self._core.notes.files or (), segments)
        self._found.modules = [self._module(mapped) for mapped in objects[:MAX_FILES]]

    def _module(self, mapped: MappedFile) -> BundledModule:
        build_id = build_id_in_memory(self._core.read, mapped.start)
        path = mapped.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        name = path.removesuffix(DELETED)
        module = BundledModule(
            path=path,
            start=mapped.start,
            end=mapped.end,
            build_id=build_id,
            main=mapped.start <= self._main < mapped.end,
            names=self._linked(mapped, name),
        )
        try:
            member = self._object(mapped, name, build_id)
        except OSError as error:
            return msgspec.structs.replace(module, missing=error.strerror or str(error))
        own = self._found.build_id(member)
        return msgspec.structs.replace(
            module,
            build_id=own,
            verified=build_id is not None,
            file=member,
            debug=[*self._debug(mapped.path.removesuffix(DELETED), member, own)],
        )

    def _linked(self, mapped: MappedFile, name: str) -> list[str]:
        """What the linker calls it, if that is another name than that of its file."""
        first = bisect.bisect_left(self._names, (mapped.start, ""))
        last = bisect.bisect_left(self._names, (mapped.end, ""))
        names = (text for _, text in self._names[first:last])
        return [text for text in dict.fromkeys(names) if text != name and is_path(text)][:16]

    def _object(self, mapped: MappedFile, name: str, build_id: str | None) -> str:
        """The member that is the module's file. OSError: why there is none."""
        if not is_path(name):
            raise OSError("its path cannot be one in an archive")
        member = in_sysroot(name)
        why: str | None = _OTHER
        for fd in self._finder.objects(
            mapped.path, mapped.start, mapped.end, main=False, has_build_id=build_id is not None
        ):
            found, why = _build_id_of(fd)
            if why is None and (build_id is None or found == build_id):
                if member in self._found.fds and self._found.build_id(member) != found:
                    os.close(fd)
                    raise OSError("another file of this path is in the bundle")
                self._take(member, fd, found)
                return member
            os.close(fd)
        raise OSError(why or _OTHER)

    def _debug(self, path: str, member: str, build_id: str | None) -> Iterator[str]:
        """The members with an object's debugging information, which may be in several files."""
        own = self._found.fds[member]
        for name, fd in self._finder.debug_files(path, build_id, debug_link(own)):
            found, why = _build_id_of(fd)
            place = debug_member(build_id) if build_id else _path_of(name)
            if why is not None or found != build_id or place is None:
                os.close(fd)
                continue
            try:
                self._take(place, fd, build_id)
            except OSError:
                return
            yield place
            yield from self._supplementary(name, self._found.fds[place])
            return
        yield from self._supplementary(path, own)

    def _supplementary(self, path: str, fd: int) -> Iterator[str]:
        """The file that dwz(1) put parts of `path` into, which several may share."""
        wanted = _supplementary_of(fd)
        if wanted is None:
            return
        for name, other in self._finder.supplementary(path, wanted[0]):
            place = _path_of(name)
            if place is None or _build_id_of(other)[0] != wanted[1]:
                os.close(other)
                continue
            with contextlib.suppress(OSError):
                self._take(place, other, wanted[1])
                yield place
            return

    def _take(self, member: str, fd: int, build_id: str | None) -> None:
        if len(self._found.fds) >= self._most:
            os.close(fd)
            raise OSError("there are too many files: a higher limit (ulimit -n) takes more")
        self._found.add(member, fd, build_id)


def _build_id_of(fd: int) -> tuple[str | None, str | None]:
    """Its build-id, and why it is no object that can be taken."""
    try:
        return build_id_of_file(fd), None
    except (OSError, CoreFormatError) as error:
        return None, str(error)


def _path_of(name: str) -> str | None:
    """The member for a file that was found by this name."""
    path = posixpath.normpath(name)
    return in_sysroot(path) if is_path(path) else None


def _supplementary_of(fd: int) -> tuple[str, str] | None:
    """What an object says of the file that it shares debugging information with: name, build-id."""
    try:
        name, zero, build_id = ElfFile(fd).section(".gnu_debugaltlink").partition(b"\0")
    except (ValueError, struct.error):
        return None
    return (os.fsdecode(name), build_id.hex()) if zero and name and build_id else None
