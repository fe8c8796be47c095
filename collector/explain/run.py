"""Explain a core in a process of its own, so that a hostile one cannot take the agent down.

The child (`python -m collector.explain`) is bounded in memory and CPU time and disarmed (see
`confine`) before it touches the core; here its wall-clock time and its output are bounded. Whatever
goes wrong becomes an Explanation whose `lost["frames"]` says what. drgn is never loaded here.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import collector
from collector.explain.types import (
    MAX_DOCUMENT,
    MAX_STACKS_DOCUMENT,
    Explanation,
    StackImage,
    UnwoundStacks,
)
from collector.linux import children
from collector.linux.patience import Patience

_PATIENCE = 2.0  # seconds that a killed child has to end
_MAX_ERRORS = 4096  # bytes of the child's standard error that are kept


def explain_core(
    core: Path,
    *,
    all_threads: bool = False,
    exe: Path | None = None,
    root_fd: int | None = None,
    timeout: float = 20.0,
    memory: int = 1 << 30,
    nice: int = 0,
) -> Explanation:
    """Backtraces and what else a plain ELF core says.

    timeout: seconds that the child may take, but for those in which others have the CPUs.
    all_threads: of all threads, not only the dying one. exe: the main program's file, as this
    process sees it (a path below /proc/self/fd is this process's own). root_fd: the folder that the
    dead process had as its root, O_PATH suffices; None: this process's. memory: bytes of private
    memory that the child may have. nice: 19 if nobody waits for it. Raises nothing for a bad core,
    or for a child that fails.
    """
    with contextlib.ExitStack() as stack:
        try:
            fds = [_open(core, os.O_RDONLY | os.O_NONBLOCK, stack)]
            if not stat.S_ISREG(os.fstat(fds[0]).st_mode):
                return _failed(f"{core} is not a regular file")
            command = _command(f"/proc/self/fd/{fds[0]}", timeout, memory)
            command += ["--nice", str(nice)]
            if exe is not None:
                with contextlib.suppress(OSError):  # then the core's own path is tried
                    fds.append(_open(exe, os.O_PATH, stack))
                    command += ["--exe", f"/proc/self/fd/{fds[-1]}"]
            if root_fd is not None:
                fds.append(root_fd)
                command += ["--root-fd", str(root_fd)]
            if all_threads:
                command.append("--all")
            return _decode(*_run(command, fds, nice, timeout, MAX_DOCUMENT))
        except (OSError, _ChildFailed) as error:
            return _failed(str(error))


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
            fds = [core, images]
            command = _command(f"/proc/self/fd/{core}", timeout, memory)
            command += ["--stacks", str(images), "--nice", str(nice)]
            if exe is not None:
                fds.append(exe)
                command += ["--exe", f"/proc/self/fd/{exe}"]
            if root_fd is not None:
                fds.append(root_fd)
                command += ["--root-fd", str(root_fd)]
            document, _ = _run(command, fds, nice, timeout, MAX_STACKS_DOCUMENT)
            found = msgspec.json.decode(document, type=UnwoundStacks)
            if len(found.stacks) == len(stacks) and found.is_whole():
                return found
            why = "the answer does not fit the question"
        except (OSError, _ChildFailed, msgspec.MsgspecError) as error:
            why = str(error)
        return UnwoundStacks(frames=[], stacks=[[] for _ in stacks], lost={"frames": why})


class _ChildFailed(Exception):
    """Why there is no document."""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)


def _open(path: Path, flags: int, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _command(core: str, timeout: float, memory: int) -> list[str]:
    limits = ["--memory", str(memory), "--cpu", str(int(timeout) + 1), "--parent", str(os.getpid())]
    return [sys.executable, "-P", "-s", "-m", "collector.explain", core, *limits]


def _environment() -> dict[str, str]:
    """Nothing is inherited: no DEBUGINFOD_URLS, no PYTHON* of the agent's."""
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",  # drgn reads debugging information with as many threads as CPUs
        "PYTHONPATH": str(Path(collector.__file__).resolve().parents[1]),
    }


def _run(
    command: list[str], fds: list[int], nice: int, timeout: float, most: int
) -> tuple[bytes, int]:
    """The child's document of at most `most` bytes, and its peak RSS. Raises _ChildFailed."""
    if children.hanging() >= children.MAX_HANGING:
        raise _ChildFailed("too many processes hang in the kernel")
    process = children.start(
        command,
        nice,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        env=_environment(),
        cwd="/",
        process_group=0,
    )
    try:
        outputs = _read_all(process, Patience(process.pid, timeout), most)
    finally:
        # also when it has closed its pipes and lingers, or has left children behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        peak_rss = _reap(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if outputs is None:
        raise _ChildFailed(f"explaining took longer than {timeout:g} seconds")
    if process.returncode is None:
        raise _ChildFailed("the explaining process hangs in the kernel")
    output, errors = outputs
    if process.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else ""
        raise _ChildFailed(f"the explaining process {_ending(process.returncode)}: {last}")
    if len(output) > most + 1:
        raise _ChildFailed(f"the explanation is larger than {most >> 20} MiB")
    return output, peak_rss


def _reap(process: subprocess.Popen[bytes]) -> int:
    """The peak RSS of a killed child in bytes. One that does not end is left behind."""
    if not children.has_ended(process.pid, _PATIENCE):
        children.leave(process)
        return 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def _read_all(
    process: subprocess.Popen[bytes], patience: Patience, most: int
) -> tuple[bytes, bytes] | None:
    """Both outputs until they end, each cut at its bound; None if the patience ends before."""
    output, errors = bytearray(), bytearray()
    with selectors.PollSelector() as open_:  # not select(2), which takes no descriptor above 1023
        for pipe, kept, bound in (
            (process.stdout, output, most + 2),
            (process.stderr, errors, _MAX_ERRORS),
        ):
            if pipe is not None:
                open_.register(pipe, selectors.EVENT_READ, (kept, bound))
        while open_.get_map():
            if not (left := patience.left()):
                return None
            for key, _ in open_.select(left):
                kept, bound = key.data
                data = os.read(key.fd, 65536)
                kept += data[: bound - len(kept)]
                if not data:
                    open_.unregister(key.fileobj)
    return bytes(output), bytes(errors)


def _decode(output: bytes, peak_rss: int) -> Explanation:
    try:
        explanation = msgspec.json.decode(output, type=Explanation)
    except msgspec.MsgspecError as error:
        return _failed(f"the explanation makes no sense: {error}")
    return msgspec.structs.replace(explanation, peak_rss=peak_rss)


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"


def _failed(why: str) -> Explanation:
    return Explanation(lost={"frames": why.rstrip(": ")})
