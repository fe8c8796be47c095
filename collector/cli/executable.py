"""Is the file that a dead process ran still there, and still the same? Compares build-ids.

The path comes from a crashing process: the file is looked at before it is opened, and only
believed if the core holds the same build-id. Finding symbols is the debugger's business.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from collector.elfcore.reader import CoreFile
from collector.elfcore.types import FileEntry
from collector.errors import CoreFormatError
from collector.explain.files import reopen
from collector.explain.mapped import build_id_in_memory, build_id_of_file
from collector.model import Record

_AT_PHDR = 3  # <linux/auxvec.h>: where the main program's own headers are
_AUXV = struct.Struct("<QQ")


def executable_of(record: Record, core: Path) -> tuple[Path | None, str | None]:
    """The executable to debug a core with, and a warning for people; either may be None.

    None as the path: it is gone or is another file by now. CoreFormatError for a core that
    cannot be read at all.
    """
    with CoreFile(core) as opened:
        program = _main_program(opened)
        expected = build_id_in_memory(opened.read, program.start) if program else None
    name = record.exe or (program.path if program else None)
    if name is None:
        return None, "it is not known which executable died; gdb gets none"
    if "\0" in name or not name.startswith("/"):
        return None, f"{name}: not an absolute path; gdb gets no executable"
    path = Path(name)
    where = " (the process was in a container)" if record.container else ""
    try:
        found = build_id_of(path)
    except (OSError, CoreFormatError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        return None, f"{path}: {why}{where}; gdb gets no executable"
    if expected is None or found is None:
        lacks = "the core" if expected is None else "the file"
        return path, f"{path}: may not be what died: {lacks} has no build-id to compare"
    if found != expected:
        return None, (
            f"{path}: is not what died{where}: its build-id is {found}, the core's {expected}; "
            "gdb gets no executable (-- --exec=FILE names one)"
        )
    return path, None


def _main_program(core: CoreFile) -> FileEntry | None:
    """The mapping with the main program's headers; None if the core does not say."""
    auxv = core.auxv or b""
    entries = dict(_AUXV.iter_unpack(auxv[: len(auxv) // _AUXV.size * _AUXV.size]))
    address = entries.get(_AT_PHDR)
    if address is None:
        return None
    files = core.notes.files or ()
    return next((f for f in files if f.start <= address < f.end and f.offset == 0), None)


def build_id_of(path: Path) -> str | None:
    """The build-id of an ELF file, in hex; None if it has none.

    OSError if it cannot be opened or is not a regular file, CoreFormatError if it is not ELF.
    """
    unopened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        fd = reopen(unopened)
    finally:
        os.close(unopened)
    try:
        return build_id_of_file(fd)
    finally:
        os.close(fd)
