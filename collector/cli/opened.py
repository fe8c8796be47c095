"""A bundle in place of an ID: unpacked for as long as a verb looks at it."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from collector.cli.cores import dying_by_exception
from collector.errors import BundleError
from collector.store.store import LATEST

if TYPE_CHECKING:
    from collector.bundle.unpack import Unpacked

_ID = re.compile(r"[0-9a-fA-F]{1,16}")
_PREFIX = "coreward-bundle-"
_MOST = 256  # folders that are looked at
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    from collector.bundle.unpack import (  # noqa: PLC0415 (most verbs are given an ID)
        open_bundle,
        unpack,
    )

    path = Path(args.id)
    try:
        fd = open_bundle(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    with dying_by_exception(), _folder(fd) as folder:
        try:
            found = unpack(path, fd, folder, whole=whole)
        except OSError as error:
            where = f"{folder}" if error.filename is None else f"{error.filename}"
            raise BundleError(f"{path}: not unpacked: {where}: {error.strerror}") from error
        args.store, args.id = found.store, found.manifest.id
        yield found


@contextlib.contextmanager
def _folder(bundle: int) -> Iterator[Path]:
    """A temporary folder, only ours: in $TMPDIR, else on a disk rather than in memory.

    It is locked as long as it is used: what a process that was killed has left is removed by the
    next one. bundle: closed, if there can be no folder.
    """
    place = os.environ.get("TMPDIR") or ("/var/tmp" if Path("/var/tmp").is_dir() else "/tmp")
    try:
        _remove_left(place)
        made, lock = _locked_folder(place)
    except OSError as error:
        os.close(bundle)
        raise BundleError(f"{place}: no folder can be made: {error.strerror}") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _locked_folder(place: str) -> tuple[Path, int]:
    """A new folder, and the descriptor that locks it. OSError."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        fd = os.open(made, _DIRECTORY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:  # else somebody has taken it for one that was left
                return made, fd
        os.close(fd)


def _remove_left(place: str) -> None:
    """Remove such folders of ours that no living process holds. OSError: the place is none."""
    with os.scandir(place) as entries:
        left = islice((entry.name for entry in entries if entry.name.startswith(_PREFIX)), _MOST)
        for name in list(left):
            with contextlib.suppress(OSError):  # another user's, a link, or in use
                fd = os.open(f"{place}/{name}", _DIRECTORY)
                try:
                    if os.fstat(fd).st_uid != os.geteuid():
                        continue
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(f"{place}/{name}", ignore_errors=True)
                finally:
                    os.close(fd)
