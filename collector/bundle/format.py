"""What a bundle is: a tar archive in zstd, whose first member says what the others are.

    manifest.json   the Manifest, below
    record.json     the record, as in the store; then what lies beside it there (threads.zst, ...)
    core            the ELF core, sparse where it is (GNU format 1.0); core.zst: as it was stored
    sysroot/...     the files that were mapped, and their debugging information, at their paths

Who opens one trusts nothing of it: names, counts and sizes are checked here. docs/bundles.md says
the same for others. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from collector.errors import BundleError

FORMAT = 1
MANIFEST, RECORD, SYSROOT = "manifest.json", "record.json", "sysroot"
DEBUG_FOLDER = "usr/lib/debug/.build-id"  # below the sysroot
MAX_MANIFEST = 16 << 20  # bytes
MAX_RECORD = 16 << 20
# values in either; an object of one may have a hundred times the bytes that it has in JSON
MAX_VALUES = 1 << 20
MAX_FILES = 16384
MAX_NAMES = 16384  # of the linker's, for all modules
_MAX_PATH, _MAX_STEP = 4000, 255  # bytes; less than PATH_MAX, to have room for where it is unpacked
_CORES = ("core", "core.zst")
# What lies beside a record in a store
BESIDE = ("threads.zst", "samples.zst", "calls.zst", "hs_err.log")
_BUILD_ID = re.compile(r"[0-9a-f]{4,128}")
_RECORD_ID = re.compile(r"[0-9a-f]{16}")


class BundledFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member of the archive behind the manifest, in the archive's order."""

    name: str
    size: int  # bytes, with its holes
    build_id: str | None = None  # of an object: who unpacks it compares


class BundledModule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object that was mapped at [start, end), and what the archive has of it."""

    path: str  # as it was mapped
    start: int
    end: int
    build_id: str | None = None  # as the core has it, else its file
    main: bool = False  # the program; all else are libraries
    verified: bool = False  # the core has a build-id, and the file the same
    file: str | None = None  # in the archive
    names: list[str] = []  # by which the dynamic linker knows it, where they are others
    debug: list[str] = []  # in the archive: its separate debugging information
    missing: str | None = None  # why there is no file


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a bundle, and what is not."""

    format: int
    coreward: str  # version of what wrote it
    id: str  # of the record
    files: list[BundledFile]
    modules: list[BundledModule]

    @property
    def core(self) -> str | None:
        """The member that is the core."""
        return next((file.name for file in self.files if file.name in _CORES), None)


def check_values(name: str, data: bytes) -> None:
    """BundleError where a member of JSON has more values than it can have: before they are made.

    What stands in texts counts as well; nothing but a made one comes near.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BundleError(f"{name} is made to fill memory: it has more than {MAX_VALUES} values")


def parse(data: bytes) -> Manifest:
    """The manifest, every name in it checked. BundleError."""
    check_values(MANIFEST, data)
    try:
        about = msgspec.json.decode(data, type=_About)
        if about.format != FORMAT:
            raise BundleError(
                f"its format is {about.format}, and this version reads {FORMAT}: take the coreward "
                f"that wrote it ({about.coreward[:40]!r}), or a later one"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error}") from None
    _check(manifest)
    return manifest


class _About(msgspec.Struct):
    format: int
    coreward: str = ""


def _check(manifest: Manifest) -> None:
    if not _RECORD_ID.fullmatch(manifest.id):
        raise BundleError(f"{MANIFEST}: its id is none of a record")
    if len(manifest.files) > MAX_FILES or len(manifest.modules) > MAX_FILES:
        raise BundleError(f"{MANIFEST}: more than {MAX_FILES} files")
    names = [file.name for file in manifest.files]
    known = set(names)
    if len(known) != len(names):
        raise BundleError(f"{MANIFEST}: a file is in it twice")
    if RECORD not in known or manifest.core is None:
        raise BundleError(f"{MANIFEST}: there is no record, or no core")
    if sum(name in _CORES for name in names) > 1:
        raise BundleError(f"{MANIFEST}: it has two cores")
    for file in manifest.files:
        _check_file(file)
    if sum(len(module.names) for module in manifest.modules) > MAX_NAMES:
        raise BundleError(f"{MANIFEST}: more than {MAX_NAMES} names of modules")
    for module in manifest.modules:
        _check_all_known((*module.debug, *([module.file] if module.file else [])), known)
        for name in module.names:
            if not is_path(name):
                raise BundleError(f"{MANIFEST}: {name[:80]!r} is no name of a module")


def _check_file(file: BundledFile) -> None:
    if file.name not in (RECORD, *BESIDE, *_CORES):
        root, slash, path = file.name.partition("/")
        if root != SYSROOT or not is_path(slash + path):
            raise BundleError(f"{MANIFEST}: {file.name[:80]!r} is no name for a file of a bundle")
    if file.name == RECORD and file.size > MAX_RECORD:
        raise BundleError(
            f"{MANIFEST}: a record of {file.size >> 20} MiB; it may have {MAX_RECORD >> 20}"
        )
    if not 0 <= file.size < 1 << 62:
        raise BundleError(f"{MANIFEST}: a file of {file.size} bytes")
    if file.build_id is not None and not _BUILD_ID.fullmatch(file.build_id):
        raise BundleError(f"{MANIFEST}: a build-id that is none")


def _check_all_known(names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known or not name.startswith(f"{SYSROOT}/"):
            raise BundleError(f"{MANIFEST}: {name[:80]!r} is not in the archive")


def is_path(path: str) -> bool:
    """Whether this is an absolute path that can be put below a folder, and stays there."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return False
    steps = raw.split(b"/")[1:]
    return (
        raw[:1] == b"/"
        and len(raw) <= _MAX_PATH
        and not any(byte < 32 or byte == 127 for byte in raw)
        and all(step not in (b"", b".", b"..") and len(step) <= _MAX_STEP for step in steps)
    )


def in_sysroot(path: str) -> str:
    """The member for a file of this path, which `is_path`."""
    return f"{SYSROOT}{path}"


def debug_member(build_id: str) -> str:
    """The member for the separate debugging information of a build-id."""
    return f"{SYSROOT}/{DEBUG_FOLDER}/{build_id[:2]}/{build_id[2:]}.debug"
