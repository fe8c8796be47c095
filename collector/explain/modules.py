"""Give drgn the files of a core's modules: the right ones, and no more than needed.

Runs in the explaining child only. drgn's own search is reduced to what reads the core itself: all
files are found by `find`. Unwinding needs only the objects; debugging information is read in a
second step, for the modules that turn up in a backtrace, which keeps a process with a hundred
libraries cheap: an object is read when a backtrace gets to it.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import drgn

from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Prot
from collector.explain.find import DebugLink, Finder, debug_link
from collector.explain.mapped import (
    MappedFile,
    bias_in_memory,
    build_id_in_memory,
    mapped_objects,
)
from collector.explain.types import MAX_MODULES, MAX_NAME, ModuleFile
from collector.ranges import union

_T = TypeVar("_T")
_WANT, _DONT_WANT = drgn.ModuleFileStatus.WANT, drgn.ModuleFileStatus.DONT_WANT
_HAVE = drgn.ModuleFileStatus.HAVE
# Objects of the distribution, whose debugging information is rarely installed.
_SYSTEM = ("/usr/", "/lib/", "/lib64/", "/nix/", "/gnu/")


def text(value: str) -> str:
    """A string of unknown origin as valid text of a bounded length."""
    return value[:MAX_NAME].encode("utf-8", "replace").decode()


def ask(question: Callable[[], _T]) -> _T | None:
    """drgn's answer, or None where it has none: the file or the memory is missing or damaged."""
    try:
        return question()
    except Exception:
        return None


class Modules:
    """The modules of `program`, which was made from `core`; `finder` is closed with them."""

    def __init__(self, program: drgn.Program, core: CoreFile, finder: Finder) -> None:
        self._program = program
        self._finder = finder
        self._files = sorted(core.notes.files or (), key=lambda file: file.start)
        self._starts = [file.start for file in self._files]
        self._paths: dict[int, str] = {}  # start address -> path
        # By the key of a module, its start:
        self._why: dict[int, str] = {}  # why it has no file
        self._links: dict[int, DebugLink] = {}
        self._opened: dict[int, int] = {}  # descriptor of its file
        self._in_core: set[int] = set()  # those whose build-id the core holds
        self._asked: dict[int, drgn.Module] = {}  # those whose files were looked for
        self.lost: dict[str, str] = {}
        program.register_debug_info_finder("files", self._find, enable_index=0)
        program.set_enabled_debug_info_finders(["files", "standard"])
        options = program.debug_info_options
        options.try_module_name = options.try_procfs = False
        options.try_build_id = options.try_debug_link = options.try_supplementary = False
        segments = [placed.segment for placed in core.segments]
        self._code = union((s.vaddr, s.vaddr + s.memsz) for s in segments if s.flags & Prot.X)
        self._create(mapped_objects(core.notes.files or (), segments))

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])
        self._finder.close()

    def __enter__(self) -> Modules:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self, objects: Sequence[MappedFile]) -> None:
        self._paths = {file.start: file.path for file in objects}
        # a core without the dynamic linker's memory has no list of what it loaded
        with contextlib.suppress(Exception):
            self._program.create_loaded_modules()
        for module in self._all():
            if module.build_id is not None:
                self._in_core.add(_key(module))
        for file in objects[:MAX_MODULES]:
            self._create_missing(file.path, file.start, file.end)

    def _create_missing(self, path: str, start: int, end: int) -> None:
        with contextlib.suppress(LookupError):
            self._program.module(start)
            return
        module = self._program.extra_module(path, start, create=True)
        module.address_ranges = [(start, end)]
        build_id = build_id_in_memory(self._program.read, start)
        if build_id is not None:
            module.build_id = bytes.fromhex(build_id)
            self._in_core.add(_key(module))

    def _all(self) -> list[drgn.Module]:
        return list(self._program.modules())[: MAX_MODULES * 2]

    def at(self, address: int) -> drgn.Module | None:
        """The module that an address is in."""
        try:
            return self._program.module(address)
        except (LookupError, OverflowError):  # none has it; it is no address at all
            return None

    def is_code(self, address: int) -> bool:
        """Whether memory at this address could be executed.

        A small core may have no segment for code at all: then any object may be code.
        """
        if not self._code:
            return self.at(address) is not None
        index = bisect.bisect_right(self._code, (address, 1 << 64)) - 1
        return index >= 0 and address < self._code[index][1]

    def load_object(self, address: int) -> bool:
        """Read the object that holds an address, what unwinding needs. False: nothing is new."""
        module = self.at(address)
        if module is None or _key(module) in self._asked:
            return False
        self._asked[_key(module)] = module
        module.debug_file_status = _DONT_WANT
        self._load([module])
        return True

    def load_debug(self, addresses: Iterable[int]) -> None:
        """Read debugging information for the modules that hold these code addresses."""
        found = (self.at(address) for address in addresses)
        wanted = {_key(module): module for module in found if module is not None}
        for module in wanted.values():
            if module.debug_file_status == _DONT_WANT:
                module.debug_file_status = _WANT
        self._load(list(wanted.values()))

    def _load(self, modules: Sequence[drgn.Module]) -> None:
        try:
            self._program.load_module_debug_info(*modules)
        except Exception as error:  # one damaged file must not cost the rest
            self.lost["debug_info"] = text(f"{type(error).__name__}: {error}")

    def path(self, module: drgn.Module) -> str:
        """Where the module's file is, seen by the process."""
        ranges = module.address_ranges
        return text(self._paths.get(ranges[0][0], module.name) if ranges else module.name)

    def offset(self, module: drgn.Module, address: int) -> int | None:
        """The address as the object's own file counts it: what addr2line and its like take."""
        bias = module.loaded_file_bias
        if bias is None and module.address_ranges:
            bias = bias_in_memory(self._program.read, module.address_ranges[0][0])
        return None if bias is None else address - bias & (1 << 64) - 1

    def code(self, address: int, size: int) -> bytes:
        """Bytes of code: from the core, else from the mapped file, where it can be had; else empty.

        Code is rarely in a core.
        """
        with contextlib.suppress(Exception):
            return bytes(self._program.read(address, size))
        self.load_object(address)
        module = self.at(address)
        fd = self._opened.get(_key(module)) if module is not None else None
        index = bisect.bisect_right(self._starts, address) - 1
        if fd is None or index < 0 or address >= self._files[index].end:
            return b""
        file = self._files[index]
        with contextlib.suppress(OSError, OverflowError):
            return os.pread(fd, size, address - file.start + file.offset)
        return b""

    def file(self, module: drgn.Module) -> int | None:
        """A descriptor of its file, borrowed; None: there is none, or it was not needed so far."""
        return self._opened.get(_key(module))

    def report(self) -> list[ModuleFile]:
        """The modules that were needed."""
        return [self._describe(module) for module in self._asked.values()]

    def _describe(self, module: drgn.Module) -> ModuleFile:
        ranges = module.address_ranges
        build_id = module.build_id
        found = module.loaded_file_status == drgn.ModuleFileStatus.HAVE
        return ModuleFile(
            path=self.path(module),
            start=ranges[0][0] if ranges else None,
            end=ranges[-1][1] if ranges else None,
            build_id=build_id.hex() if build_id is not None else None,
            found=found,
            debug=module.debug_file_status == drgn.ModuleFileStatus.HAVE,
            verified=found and _key(module) in self._in_core,
            why=None if found else self._why.get(_key(module)),
        )

    def without_debug(self, paths: Iterable[str]) -> list[str]:
        """Of which of these objects debugging information was not found where they say it is."""
        found = []
        for key, link in self._links.items():
            module = self._asked.get(key)
            if module is None or module.debug_file_status in (_HAVE, _DONT_WANT):
                continue
            path = self.path(module)
            if path in paths and not path.startswith(_SYSTEM):
                found.append(f"{path}: {link.name}, which it names (.gnu_debuglink), is not there")
        return found

    # ---- called by drgn

    def _find(self, modules: Sequence[drgn.Module]) -> None:
        for module in modules:
            if isinstance(module, drgn.VdsoModule):
                continue  # it is in the core
            if module.wants_loaded_file():
                self._find_object(module)
            if module.wants_debug_file():
                self._find_debug(module)

    def _find_object(self, module: drgn.Module) -> None:
        path, ranges = self.path(module), module.address_ranges
        start, end = (ranges[0][0], ranges[-1][1]) if ranges else (0, 0)
        why = "its file is another one than was mapped (build-id)"
        try:
            for fd in self._finder.objects(
                path,
                start,
                end,
                main=isinstance(module, drgn.MainModule),
                has_build_id=_key(module) in self._in_core,
            ):
                own = os.dup(fd)
                module.try_file(path, fd=fd)
                if not module.wants_loaded_file():
                    self._keep(module, own)
                    return
                os.close(own)
        except OSError as error:
            why = error.strerror or str(error)
        except Exception as error:  # drgn: damaged ELF file
            why = str(error)
        self._why[_key(module)] = text(why)

    def _keep(self, module: drgn.Module, fd: int) -> None:
        link = debug_link(fd)
        if link is not None:
            self._links[_key(module)] = link
        self._opened[_key(module)] = fd

    def _find_debug(self, module: drgn.Module) -> None:
        for name, fd in self._debug_files(module):
            with contextlib.suppress(Exception):  # a damaged file
                module.try_file(name, fd=fd)
            if module.debug_file_status == drgn.ModuleFileStatus.WANT_SUPPLEMENTARY:
                wanted = module.wanted_supplementary_debug_file()
                for other, other_fd in self._finder.supplementary(
                    wanted.path, wanted.supplementary_path
                ):
                    with contextlib.suppress(Exception):
                        module.try_file(other, fd=other_fd)
            if not module.wants_debug_file():
                return

    def _debug_files(self, module: drgn.Module) -> Iterator[tuple[str, int]]:
        """Separate files, then its own, which may need a supplementary one as well."""
        build_id = module.build_id.hex() if module.build_id is not None else None
        path, own = self.path(module), self._opened.get(_key(module))
        yield from self._finder.debug_files(path, build_id, self._links.get(_key(module)))
        if own is not None:
            yield path, os.dup(own)


def _key(module: drgn.Module) -> int:
    ranges = module.address_ranges
    return ranges[0][0] if ranges else 0
