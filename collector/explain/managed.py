"""Which interpreter or virtual machine ran a dead program, and the report that Java made.

Named by what their objects export or are called, so that it is certain: Python's `Py_Version`,
Node's metadata, a mapped libjvm.so. Java's HotSpot writes a report before it aborts
(hs_err_pidN.log): to -XX:ErrorFile, else to the current folder, else to /tmp. The first two are
looked for beneath the process's own root, by the words of its command line and environment that
its core has; the current folder is `PWD`, for the process has ended. Runs in the explaining child
only: the file belongs to the dead process's user, and is as hostile as he is.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from collector.circumstances import ManagedRuntime
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.exported import Absent, Read, exactly, exported
from collector.explain.files import Root
from collector.explain.find import Finder
from collector.explain.go_runtime import program_version
from collector.explain.mapped import MappedFile, joined
from collector.explain.modules import text
from collector.explain.python_frames import version_of_python
from collector.explain.python_layout import spelled

REPORT = 512 << 10  # bytes of a report that are kept; usual ones have 100 KiB
_SLACK = 2.0  # seconds: clocks of files are coarse
_MAX_WORDS = 32 << 10  # bytes of the end of the environment and the command line
_AT_ENTRY, _AT_EXECFN = 9, 31  # <linux/auxvec.h>
_UNKNOWN = {"java": "Java", "node": "JavaScript"}  # whose functions are in no form that is kept
_NODE = "_ZN4node11per_process8metadataE"  # its first member is the version, a std::string
_VERSION = re.compile(r"\d[\w.+-]{0,40}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RELEASE = re.compile(rb'^JAVA_VERSION="(\d[\w.+-]{0,40})"', re.MULTILINE)
_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")


class Managed(NamedTuple):
    """What runs the program, and the text of its report."""

    runtime: ManagedRuntime
    report: str | None = None


def words_before(read: Read, auxv: bytes) -> list[str]:
    """Of the command line and environment, in that order; the first may be a part of one.

    They end where the name of the program begins, which AT_EXECFN leads to, at the stack's top.
    """
    end = _auxiliary(auxv).get(_AT_EXECFN, 0)
    data = b""
    while end and len(data) < _MAX_WORDS:  # page by page: a small core may not have all
        start = (end - len(data) - 1) & -4096
        part = read(start, end - len(data) - start) if start > 0 else b""
        if len(part) != end - len(data) - start:
            break
        data = part + data
    return [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")]


def managed(core: CoreFile, code: Callable[[int, int], bytes], finder: Finder) -> Managed | None:
    """None: none that is known. code: reads what is in a mapped file only."""

    def memory(address: int, size: int) -> bytes:
        with contextlib.suppress(CoreFormatError, OverflowError):
            return core.read(address, size)
        return b""

    def anywhere(address: int, size: int) -> bytes:
        return memory(address, size) or code(address, size)

    auxv = core.auxv or b""
    objects = list(joined(core.notes.files or ()))
    with contextlib.suppress(Absent, struct.error):
        virtual_machine = is_java(objects)
        if virtual_machine is not None:
            psinfo = core.notes.psinfo
            pid = None if psinfo is None else psinfo.pid
            words = words_before(memory, auxv)
            return _java(virtual_machine.path, words, pid, finder.root, finder.changed)
        if (version := program_version(memory, core.mappings, auxv)) is not None:
            return Managed(ManagedRuntime(name="go", version=text(version.removeprefix("go"))))
        if (number := version_of_python(anywhere, objects, auxv)) is not None:
            return Managed(ManagedRuntime(name="python", version=spelled(number)))
        if (version := version_of_node(anywhere, objects, auxv)) is not None:
            return Managed(ManagedRuntime(name="node", version=version or None))
    return None


def is_java(objects: Iterable[MappedFile]) -> MappedFile | None:
    """The mapped virtual machine, if there is one."""
    return next((one for one in objects if _name(one.path) == "libjvm.so"), None)


def unknown_frames(found: Managed | None) -> dict[str, str]:
    """What is lost of a backtrace, as of `Record.lost`."""
    name = None if found is None else _UNKNOWN.get(found.runtime.name)
    return {} if name is None else {"interpreted_frames": f"only its runtime knows those of {name}"}


def version_of_node(read: Read, objects: Iterable[MappedFile], auxv: bytes) -> str | None:
    """`20.20.2`; empty: it is Node, of a version that cannot be read; None: it is not."""
    entry = _auxiliary(auxv).get(_AT_ENTRY, 0)
    for one in objects:
        if not (one.start <= entry < one.end or _name(one.path).startswith("libnode.so")):
            continue
        at = exported(read, one.start, _NODE)
        if at is None:
            continue
        with contextlib.suppress(Absent, struct.error):
            address, size = struct.unpack("<QQ", exactly(read, at, 16))
            said = exactly(read, address, min(size, 64)).decode("ascii", "replace")
            return said if _VERSION.fullmatch(said) else ""
        return ""
    return None


# ---- Java


def _java(library: str, words: Sequence[str], pid: int | None, root: Root, began: float) -> Managed:
    version = _java_version(library, root)
    why = "its number is not known"
    for path in () if pid is None else candidates(words, pid):
        try:
            report = _report(root, path, pid or 0, began)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            why = f"{text(path)}: {reason}"
            continue
        found = ManagedRuntime(name="java", version=version, report=text(path))
        return Managed(found, report)
    return Managed(ManagedRuntime(name="java", version=version, lost=f"no hs_err file: {why}"))


def candidates(words: Sequence[str], pid: int) -> Iterator[str]:
    """Where the report may be, the most likely first: os::open and prepare_log_file of HotSpot."""
    variables = dict(word.split("=", 1) for word in words if "=" in word and word[0] != "-")
    folder = variables.get("PWD", "")
    options = [*words, *(o for name in _OPTIONS for o in variables.get(name, "").split())]
    wanted = [o.partition("=")[2] for o in options if o.startswith("-XX:ErrorFile=")]
    for pattern in (*wanted[-1:], "hs_err_pid%p.log"):
        name = re.sub(r"%[%p]", lambda found: "%" if found[0] == "%%" else str(pid), pattern)
        if name.startswith("/") or folder.startswith("/"):
            yield posixpath.join(folder, name)
    yield f"/tmp/hs_err_pid{pid}.log"


def _report(root: Root, path: str, pid: int, began: float) -> str:
    """The text of a report. OSError; ValueError: it is none of this process's."""
    fd = root.open(path)
    with os.fdopen(fd, "rb", buffering=0) as file:
        if os.fstat(fd).st_mtime < began - _SLACK:
            raise ValueError("it is older than the process")
        data = b""
        while len(data) < REPORT and (part := file.read(REPORT - len(data))):
            data += part
    if not data.startswith(b"#") or not re.search(rb"\bpid=%d\b" % pid, data[:4096]):
        raise ValueError("it is no report of this process")
    said = data.decode("utf-8", "replace")
    return _CONTROL.sub("?", said)  # it may be shown on a terminal


def _java_version(library: str, root: Root) -> str | None:
    """Of the file `release` two folders above lib/server/libjvm.so (JEP 223)."""
    with contextlib.suppress(OSError):
        fd = root.open(str(PurePosixPath(library).parent.parent.parent / "release"))
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = _RELEASE.search(file.read(16 << 10))
            return None if found is None else found[1].decode()
    return None


def _name(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(" (deleted)")


def _auxiliary(auxv: bytes) -> dict[int, int]:
    return dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & -16]))
