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
import subprocess
import sys
from pathlib import Path

import collector
from collector.linux import children
from collector.linux.patience import Patience

_PATIENCE = 2.0  # seconds that a killed child has to end
_MAX_ERRORS = 4096  # bytes of the child's standard error that are kept


class ChildFailed(Exception):
    """Why there is no document."""


def command(module: str, core: str, timeout: float, memory: int) -> list[str]:
    """How to start `module` on a core, which bounds itself by `confine`. memory: bytes."""
    limits = ["--memory", str(memory), "--cpu", str(int(timeout) + 1), "--parent", str(os.getpid())]
    return [sys.executable, "-P", "-s", "-m", module, core, *limits]


def _environment() -> dict[str, str]:
    """Nothing is inherited: no DEBUGINFOD_URLS, no PYTHON* of the agent's."""
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",  # drgn reads debugging information with as many threads as CPUs
        "PYTHONPATH": str(Path(collector.__file__).resolve().parents[1]),
    }


def run(
    command: list[str], fds: list[int], nice: int, timeout: float, most: int
) -> tuple[bytes, int]:
    """The child's document of at most `most` bytes, and its peak RSS in bytes.

    timeout: seconds, but for those in which others have the CPUs; nice: 19 if nobody waits for it.
    ChildFailed says what went wrong, OSError that it cannot be started.
    """
    if children.hanging() >= children.MAX_HANGING:
        raise ChildFailed("too many processes hang in the kernel")
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
        raise ChildFailed(f"explaining took longer than {timeout:g} seconds")
    if process.returncode is None:
        raise ChildFailed("the explaining process hangs in the kernel")
    output, errors = outputs
    if process.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else ""
        raise ChildFailed(f"the explaining process {_ending(process.returncode)}: {last}")
    if len(output) > most + 1:
        raise ChildFailed(f"the explanation is larger than {most >> 20} MiB")
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


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
