"""Whether others could put something of theirs in the place of a file that root relies on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from collector.errors import HoldError


def check_folders(path: Path) -> None:
    """Look at every folder above `path`, a path without links. HoldError names one of others.

    A folder belongs to others if they own it or may write it. What a sticky one holds of ours they
    may write beside, but not replace (unlink(2), EPERM).
    """
    for folder in path.parents:
        try:
            about = folder.stat()
        except OSError as error:
            raise HoldError(f"{folder}: {error.strerror}") from error
        if about.st_uid not in (0, os.geteuid()):
            raise HoldError(f"{path}: uid {about.st_uid} could replace it: {folder} is theirs")
        writers = about.st_mode & 0o002 or (about.st_mode & 0o020 and about.st_gid != 0)
        if writers and not about.st_mode & stat.S_ISVTX:
            raise HoldError(
                f"{path}: others could replace it: they may write {folder} "
                f"(mode {stat.S_IMODE(about.st_mode):04o}, gid {about.st_gid})"
            )
