"""Explain a core in a process of its own, so that a hostile one cannot take the agent down.

Whatever goes wrong in the child (`python -m collector.explain`) becomes an Explanation whose
`lost["frames"]` says what. drgn is never loaded here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from collector.explain import child
from collector.explain.child import Bounds, ChildFailed
from collector.explain.kept_threads import FILE as THREADS
from collector.explain.types import (
    MAX_DOCUMENT,
    MAX_FULL_DOCUMENT,
    MAX_STACKS_DOCUMENT,
    Explanation,
    StackImage,
    UnwoundStacks,
)
from collector.linux.atomic import atomic_file
from collector.signature.types import SignatureRules

_CHILD = "collector.explain"
_MAX_MAPPED = 64  # files that have no path any more
REPORT = "hs_err.log"  # in the record's folder
_SLACK = 1.0  # seconds: a process may have begun a moment before its program was run
_MAX_KEPT = 16 << 20  # bytes of the file of threads


def explain_core(
    core: Path,
    *,
    all_threads: bool = False,
    full: bool = False,
    signature: SignatureRules | None = None,
    exe: Path | None = None,
    root_fd: int | None = None,
    mapped: Mapping[int, int] | None = None,
    keep: Path | None = None,
    report: bool = True,
    began: float | None = None,
    timeout: float = 20.0,
    memory: int = 1 << 30,
    nice: int = 0,
) -> Explanation:
    """Backtraces and what else a plain ELF core says.

    timeout: seconds that the child may take, but for those in which others have the CPUs.
    all_threads: of all threads, not only the dying one; full: and of each with variables and
    registers. signature: the policy's rules for what a signature takes from the frames; None:
    nobody wants one. exe: the main program's file, as this process sees it (a path below
    /proc/self/fd is this process's own). root_fd: the folder that the dead process had as its root,
    O_PATH suffices; None: this process's. mapped: address in a mapping -> descriptor of its file,
    for what has no path any more. keep: a folder, to put the backtraces of all threads there, if
    there are more than one, and the report that its virtual machine made; report: whether that may
    be. began: when the process did, seconds of the epoch: a file that was
    changed since is believed only by its build-id; None: since the core was written. memory: bytes
    of private memory that the child may have. nice: 19 if nobody waits for it. Raises nothing for a
    bad core, or for a child that fails.
    """
    bounds = Bounds(timeout, memory, MAX_FULL_DOCUMENT if full else MAX_DOCUMENT, nice)
    more = [*(["--all"] if all_threads else []), *(["--full"] if full else [])]
    if began is not None:
        more += ["--changed", str(began + _SLACK)]
    files = dict(itertools.islice((mapped or {}).items(), _MAX_MAPPED))
    for address, file in files.items():
        more += ["--mapped", f"{address:x}={file}"]
    if signature is not None:
        more += ["--signature", msgspec.json.encode(signature).decode()]
    try:
        with child.opened(core, exe) as (fd, exe_fd), _memory(keep is not None) as kept:
            if kept is not None:
                more += ["--threads", str(kept)]
            answer = child.ask(
                *(_CHILD, bounds),
                core=fd,
                exe=exe_fd,
                root=root_fd,
                more=more,
                fds=[*files.values(), *([] if kept is None else [kept])],
            )
            unkept = {} if kept is None or keep is None else _keep(kept, keep)
    except (OSError, ChildFailed) as error:
        return _failed(str(error))
    found = _with_report(_decode(*answer), keep if report else None)
    return msgspec.structs.replace(found, lost={**found.lost, **unkept}) if unkept else found


@contextlib.contextmanager
def _memory(wanted: bool) -> Iterator[int | None]:
    """A descriptor of memory that the child may write to. OSError."""
    if not wanted:
        yield None
        return
    memory = os.memfd_create("threads", os.MFD_CLOEXEC)
    try:
        yield memory
    finally:
        os.close(memory)


def _keep(memory: int, folder: Path) -> dict[str, str]:
    """Put what was written into the file of threads; if it cannot be put there, why."""
    size = os.fstat(memory).st_size
    if not size:
        return {}
    try:
        with atomic_file(folder / THREADS) as fd:
            _copy(memory, fd, min(size, _MAX_KEPT))
    except OSError as error:  # the disk is full, or the record was removed
        return {"threads": f"their backtraces cannot be kept: {error.strerror}"}
    return {}


def _with_report(found: Explanation, folder: Path | None) -> Explanation:
    """With the report in a file of the folder, instead of its text."""
    text, runtime = found.report, found.runtime
    if text is None or runtime is None:
        return found
    changes: dict[str, str] = {"lost": "its report may not be kept"}
    if folder is not None:
        try:
            with atomic_file(folder / REPORT) as fd:
                _write(fd, text.encode("utf-8", "replace"))
            changes = {"report_file": REPORT}
        except OSError as error:
            changes = {"lost": f"its report cannot be kept: {error.strerror}"}
    runtime = msgspec.structs.replace(runtime, **changes)
    return msgspec.structs.replace(found, report=None, runtime=runtime)


def _copy(source: int, target: int, size: int) -> None:
    at = 0
    while at < size:
        at += os.sendfile(target, source, at, size - at)


def unwind_stacks(
    core: int,
    stacks: Sequence[StackImage],
    *,
    exe: int | None = None,
    root_fd: int | None = None,
    timeout: float = 60.0,
    memory: int = 1 << 30,
    nice: int = 0,
) -> UnwoundStacks:
    """Backtraces of stacks that were copied from the process whose mappings `core` tells.

    core, exe: descriptors of a plain ELF core and of the main program's file; nice: 19 if nobody
    waits for it; else as `explain_core`. A stack that cannot be unwound has the frames that were
    found, or none.
    """
    with contextlib.ExitStack() as stack:
        try:
            images = os.memfd_create("stacks", os.MFD_CLOEXEC)
            stack.callback(os.close, images)
            _write(images, msgspec.msgpack.encode(stacks))
            document, _ = child.ask(
                _CHILD,
                Bounds(timeout, memory, MAX_STACKS_DOCUMENT, nice),
                core=core,
                exe=exe,
                root=root_fd,
                more=["--stacks", str(images)],
                fds=[images],
            )
            found = msgspec.json.decode(document, type=UnwoundStacks)
            if len(found.stacks) == len(stacks) and found.is_whole():
                return found
            why = "the answer does not fit the question"
        except (OSError, ChildFailed, msgspec.MsgspecError) as error:
            why = str(error)
        return UnwoundStacks(frames=[], stacks=[[] for _ in stacks], lost={"frames": why})


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)


def _decode(output: bytes, peak_rss: int) -> Explanation:
    try:
        explanation = msgspec.json.decode(output, type=Explanation)
    except msgspec.MsgspecError as error:
        return _failed(f"the explanation makes no sense: {error}")
    return msgspec.structs.replace(explanation, peak_rss=peak_rss)


def _failed(why: str) -> Explanation:
    return Explanation(lost={"frames": why.rstrip(": ")})
