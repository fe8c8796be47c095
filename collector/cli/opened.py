"""A bundle in place of an ID: unpacked for as long as a verb looks at it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from collector.cli.cores import dying_by_exception
from collector.elfcore.stored import is_compressed
from collector.errors import BundleError
from collector.store.store import LATEST

if TYPE_CHECKING:
    from collector.bundle.unpack import Unpacked

_ID = re.compile(r"[0-9a-fA-F]{1,16}")
_PREFIX = "coreward-bundle-"
_ELF = b"\x7fELF"


def is_file(name: str) -> bool:
    """Whether a verb's ID names a file: whatever cannot be an ID. (`./abcd` is one as well.)"""
    return name != LATEST and not _ID.fullmatch(name) and ("/" in name or os.path.exists(name))  # noqa: PTH110 (not of any name)


@contextlib.contextmanager
def bundle_of(args: argparse.Namespace, *, whole: bool) -> Iterator[Unpacked | None]:
    """If the ID is a file, unpack it, and have `args` name the one record in a store of its own.

    whole: with its core, and the files that were mapped. All is removed at the end of the block.
    BundleError. None: it is an ID.
    """
    if not is_file(args.id):
        yield None
        return
    from collector.bundle.unpack import unpack  # noqa: PLC0415 (most verbs are given an ID)

    path = Path(args.id)
    with dying_by_exception(), _folder() as folder:
        try:
            _refuse_others(path)
            found = unpack(path, folder, whole=whole)
        except OSError as error:
            where = f"{folder}" if error.filename is None else f"{error.filename}"
            raise BundleError(f"{path}: not unpacked: {where}: {error.strerror}") from error
        args.store, args.id = found.store, found.manifest.id
        yield found


def _refuse_others(path: Path) -> None:
    """BundleError for what is something else, and can be told what to do with."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not path.is_file():
            raise BundleError(f"{path}: not a file")
        if os.pread(fd, 4, 0) == _ELF:
            raise BundleError(f"{path}: no bundle, but an ELF file; a debugger takes it as it is")
        if not is_compressed(fd):
            raise BundleError(f"{path}: no bundle: `coreward export ID --bundle -o FILE` makes one")
    finally:
        os.close(fd)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder, only ours: in $TMPDIR, else on a disk rather than in memory."""
    place = os.environ.get("TMPDIR") or ("/var/tmp" if Path("/var/tmp").is_dir() else None)
    try:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        raise BundleError(f"{place or '/tmp'}: no folder can be made: {error.strerror}") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
