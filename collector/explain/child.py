"""Run a child that looks at a hostile core, and bound what it takes and says.

The child (`python -m collector.explain` and its like) is bounded in memory and CPU time and
disarmed (see `confine`) before it touches the core; here its wall-clock time and its output are
bounded.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import collector
from collector.linux import children
from collector.linux.patience import Patience

_PATIENCE = 2.0  # seconds that a killed child has to end
_MAX_ERRORS = 4096  # bytes of the child's standard error that are kept


class ChildFailed(Exception):
    """Why there is no document."""


class Bounds(NamedTuple):
    """What a child may take: seconds, but for those in which others have the CPUs; bytes of private
    memory; bytes of its document. nice: 19 if nobody waits for it."""

    timeout: float
    memory: int
    document: int
    nice: int


@contextlib.contextmanager
def opened(core: Path, exe: Path | None) -> Iterator[tuple[int, int | None]]:
    """Descriptors of a core and of the main program's file, if that is there.

    exe: as this process sees it (a path below /proc/self/fd is this process's own). OSError if the
    core cannot be opened, ChildFailed if it is no regular file.
    """
    with contextlib.ExitStack() as stack:
        fd = os.open(core, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ChildFailed(f"{core} is not a regular file")
        exe_fd = None
        if exe is not None:
            with contextlib.suppress(OSError):  # then the core's own path is tried
                exe_fd = os.open(exe, os.O_PATH | os.O_CLOEXEC)
                stack.callback(os.close, exe_fd)
        yield fd, exe_fd


def ask(
    module: str,
    bounds: Bounds,
    *,
    core: int,
    exe: int | None,
    root: int | None,
    more: Sequence[str] = (),
    fds: Sequence[int] = (),
) -> tuple[bytes, int]:
    """What `module`, which takes its arguments by `asked`, says of a core; its peak RSS in bytes.

    core, exe: descriptors. root: that of the folder that the dead process had as its root, O_PATH
    suffices; None: this process's. more: further arguments, about the descriptors `fds`.
    ChildFailed says what went wrong, OSError that it cannot be started.
    """
    command = [
        *(sys.executable, "-P", "-s", "-m", module, f"/proc/self/fd/{core}"),
        *("--memory", str(bounds.memory), "--cpu", str(int(bounds.timeout) + 1)),
        *("--nice", str(bounds.nice), "--parent", str(os.getpid()), *more),
    ]
    passed = [core, *fds]
    if exe is not None:
        passed.append(exe)
        command += ["--exe", f"/proc/self/fd/{exe}"]
    if root is not None:
        passed.append(root)
        command += ["--root-fd", str(root)]
    return _run(command, passed, bounds)


def _environment() -> dict[str, str]:
    """Nothing is inherited: no DEBUGINFOD_URLS, no PYTHON* of the agent's."""
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "DRGN_DISABLE_PLUGINS": "*",  # those of any package, and a third of the time
        "OMP_NUM_THREADS": "1",  # drgn reads debugging information with as many threads as CPUs
        "PYTHONPATH": str(Path(collector.__file__).resolve().parents[1]),
    }


def _run(command: list[str], fds: list[int], bounds: Bounds) -> tuple[bytes, int]:
    if children.hanging() >= children.MAX_HANGING:
        raise ChildFailed("too many processes hang in the kernel")
    process = children.start(
        command,
        bounds.nice,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        env=_environment(),
        cwd="/",
        process_group=0,
    )
    try:
        outputs = _read_all(process, Patience(process.pid, bounds.timeout), bounds.document)
    finally:
        # also when it has closed its pipes and lingers, or has left children behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        peak_rss = _reap(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    output, errors, ended = outputs
    if len(output) > bounds.document + 1:
        raise ChildFailed(f"the explanation is larger than {bounds.document >> 20} MiB")
    if output.endswith(b"\n"):  # its document is whole, whatever became of it then
        return output, peak_rss
    if not ended:
        raise ChildFailed(f"explaining took longer than {bounds.timeout:g} seconds")
    if process.returncode is None:
        raise ChildFailed("the explaining process hangs in the kernel")
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else ""
    raise ChildFailed(f"the explaining process {_ending(process.returncode)}: {last}")


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
) -> tuple[bytes, bytes, bool]:
    """Both outputs, each cut at its bound; and whether they ended before the patience did."""
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
                return bytes(output), bytes(errors), False
            for key, _ in open_.select(left):
                kept, bound = key.data
                data = os.read(key.fd, 65536)
                kept += data[: bound - len(kept)]
                if not data:
                    open_.unregister(key.fileobj)
    return bytes(output), bytes(errors), True


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
