"""What a dead process's executable was installed with: by the file itself, else by dpkg's lists.

The note is that of systemd's "Package Metadata for Executable Files", which Fedora and others put
into all that they build. dpkg's lists are those of the process's own root (dpkg-query(1) reads the
same), so they are as hostile as all else there: bytes and time are bounded.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector.arch import elf as arch
from collector.circumstances import Package
from collector.elfcore.notes import iter_notes
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.files import Root

_WORDS = struct.Struct("<QQ")  # of the auxiliary vector; AT_ENTRY is 9
_FDO_PACKAGE = 0xCAFE1A7E  # type of a note of owner FDO
_MAX_HEADERS, _MAX_NOTES = 64, 64 << 10
_STATUS, _LISTS = "/var/lib/dpkg/status", "/var/lib/dpkg/info"
_MAX_STATUS, _MAX_LIST = 64 << 20, 16 << 20  # bytes
_MOST_PACKAGES = 20_000
_MOST_SECONDS = 2.0
_MAX_TEXT = 256  # characters of a name, a version
_INSTALLED = ("/usr/", "/bin/", "/sbin/", "/lib", "/opt/")  # where packages put programs


class _Note(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Installed(NamedTuple):
    name: str
    version: str
    lists: tuple[str, ...]  # names of the file that may have its paths


def package_of_core(core: Path, exe: Path | None, root: Root) -> Package | None:
    """Of the program that left the core. OSError and CoreFormatError as of CoreFile."""
    with CoreFile(core) as file:
        return package_of(exe, root, main_program(file))


def package_of(exe: Path | None, root: Root, path: str | None) -> Package | None:
    """exe: the main program's file, as this process sees it. path: as the dead process saw it."""
    if exe is not None:
        with contextlib.suppress(OSError, CoreFormatError, ValueError):
            fd = os.open(exe, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if (found := by_note(lambda at, size: os.pread(fd, size, at))) is not None:
                    return found
            finally:
                os.close(fd)
    if path is None or not path.startswith(_INSTALLED):
        return None
    with contextlib.suppress(OSError):
        return by_dpkg(root, path)
    return None


def main_program(core: CoreFile) -> str | None:
    """The path of the file in which the program begins, as its process saw it."""
    auxv = core.auxv or b""
    entry = next((at for kind, at in _WORDS.iter_unpack(auxv[: len(auxv) & -16]) if kind == 9), 0)
    files = core.notes.files or ()
    return next((file.path for file in files if file.start <= entry < file.end), None)


def by_note(read: Callable[[int, int], bytes]) -> Package | None:
    """What the ELF file says of itself. read(offset, size)."""
    header = read(0, arch.EHDR.size)
    if len(header) < arch.EHDR.size or header[:4] != b"\x7fELF":
        return None
    fields = arch.EHDR.unpack(header)
    phoff, phentsize, phnum = fields[5], fields[9], min(fields[10], _MAX_HEADERS)
    table = read(phoff, phnum * arch.PHDR.size)
    if phentsize != arch.PHDR.size:
        return None
    for kind, _, offset, _, _, size, _, _ in arch.PHDR.iter_unpack(
        table[: len(table) // arch.PHDR.size * arch.PHDR.size]
    ):
        if kind != arch.PT_NOTE or size > _MAX_NOTES:
            continue
        with contextlib.suppress(CoreFormatError, msgspec.MsgspecError):
            for note in iter_notes(read(offset, size)):
                if (note.owner, note.type) == (b"FDO", _FDO_PACKAGE):
                    said = msgspec.json.decode(note.data.rstrip(b"\0"), type=_Note)
                    return Package(
                        name=said.name[:_MAX_TEXT], version=said.version[:_MAX_TEXT], source="note"
                    )
    return None


def by_dpkg(root: Root, path: str) -> Package | None:
    """Whose list has the path. OSError: there is no dpkg."""
    # a system whose /bin is /usr/bin by now has lists from before
    paths = {path, path.removeprefix("/usr") if path.startswith("/usr/") else f"/usr{path}"}
    lines = [b"\n" + os.fsencode(one) + b"\n" for one in paths]
    until = time.monotonic() + _MOST_SECONDS
    for package in _likely_first(_read(root, _STATUS, _MAX_STATUS), path.rpartition("/")[2]):
        if time.monotonic() > until:
            return None
        for name in package.lists:
            with contextlib.suppress(OSError):
                listed = b"\n" + _read(root, f"{_LISTS}/{name}.list", _MAX_LIST)
                if any(line in listed for line in lines):
                    return Package(name=package.name, version=package.version, source="dpkg")
    return None


def _likely_first(status: bytes, program: str) -> list[_Installed]:
    """The installed packages; those that are called like the program come first."""
    found = []
    for package in _packages(status):
        found.append(package)
        if len(found) == _MOST_PACKAGES:
            break
    return sorted(found, key=lambda p: not (p.name.startswith(program) or p.name in program))


def _packages(status: bytes) -> Iterator[_Installed]:
    for stanza in status.split(b"\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in stanza.decode("utf-8", "replace").split("\n")
            if line[:1].isalpha() and ": " in line
        )
        name, version = fields.get("Package", ""), fields.get("Version", "")
        if "/" in name or not name or not version or " installed" not in fields.get("Status", ""):
            continue
        architecture = fields.get("Architecture", "").replace("/", "")
        lists = (name, f"{name}:{architecture}")
        both = fields.get("Multi-Arch") == "same"
        yield _Installed(name[:_MAX_TEXT], version[:_MAX_TEXT], lists[::-1] if both else lists[:1])


def _read(root: Root, path: str, most: int) -> bytes:
    fd = root.open(path)
    with os.fdopen(fd, "rb", buffering=0) as file:
        found = bytearray()
        while len(found) < most and (data := file.read(min(1 << 20, most - len(found)))):
            found += data
    return bytes(found)
