"""The command line of a debugger, for a core and the files of another machine.

What is in a bundle is hostile. So nothing of it is run: neither scripts that lie beside a module or
in a section of it, nor a thread library. gdb takes the rest of a line as one path, so paths with
anything but plain characters are refused where we choose them, and replaced by a link where they
come with the bundle.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from collector.errors import CorewardError

if TYPE_CHECKING:
    from collector.bundle.unpack import Unpacked

DEBUGGERS = ("gdb", "lldb")
_PLAIN = re.compile(r"[A-Za-z0-9_./+@%,=-]+")
_MOST_FOLDERS = 256  # of modules, that are searched
_HOST_DEBUG = Path("/usr/lib/debug")


def find(name: str) -> str:
    """The debugger's path. CorewardError says how to get it."""
    found = shutil.which(name)
    if found is None:
        raise CorewardError(
            f"{name} is not installed: it is in the package `{name}` (apt-get install {name}, "
            f"dnf install {name})"
        )
    return found


def of_bundle(name: str, bundle: Unpacked, core: Path, passed_on: Sequence[str]) -> list[str]:
    """The command that opens an unpacked bundle. core: the plain one."""
    sysroot = _plain(bundle.sysroot)
    program = _program(bundle)
    folders = [str(folder) for folder in bundle.folders() if _PLAIN.fullmatch(str(folder))]
    folders = folders[:_MOST_FOLDERS]
    debug = f"{sysroot}/usr/lib/debug"
    if name == "lldb":
        lines = [
            "settings set target.load-script-from-symbol-file false",
            f"settings set target.exec-search-paths {' '.join(folders)}" if folders else "",
            f"settings set target.debug-file-search-paths {debug} {_HOST_DEBUG}",
            f"platform select --sysroot {sysroot} remote-linux",
            f"target create --core {_plain(core)}" + (f" {program}" if program else ""),
        ]
        words = [word for line in lines if line for word in ("--one-line-before-file", line)]
        return [find(name), *words, *passed_on]
    lines = [
        "set auto-load off",  # before all else: scripts of the bundle's
        f"set sysroot {sysroot}",
        f"set solib-search-path {':'.join(folders)}",
        f"set debug-file-directory {debug}:{_HOST_DEBUG}",
        f"file {program}" if program else "",
        f"core-file {_plain(core)}",
    ]
    words = [word for line in lines if line for word in ("-ex", line)]
    return [find(name), *words, *passed_on]


def _program(bundle: Unpacked) -> str | None:
    """The main program's file; None: the bundle does not have it."""
    file = bundle.program()
    if file is None:
        return None
    if _PLAIN.fullmatch(str(file)):
        return str(file)
    link = bundle.folder / "program"
    link.symlink_to(file)
    return _plain(link)


def _plain(path: Path) -> str:
    if not _PLAIN.fullmatch(str(path)):
        raise CorewardError(
            f"{path}: debuggers do not take a path with such characters: have TMPDIR name another"
        )
    return str(path)
