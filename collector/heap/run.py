"""Read a core's heap in a process of its own, as `explain.run` has a core explained.

Whatever goes wrong in the child becomes a report whose `lost["heap"]` says what.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import msgspec

from collector.explain import child
from collector.explain.child import ChildFailed
from collector.heap.types import MAX_DOCUMENT, HeapReport
from collector.model import Record

_CHILD = "collector.heap"
SECONDS = 2.0  # for the allocator's lists
_AROUND_S = 3.0  # more seconds for what is around: opening a core of 60,000 mappings


def heap_of_core(
    core: Path,
    *,
    exe: Path | None = None,
    root_fd: int | None = None,
    seconds: float = SECONDS,
    memory: int = 1 << 30,
    nice: int = 0,
) -> HeapReport:
    """What the allocators of the process say that left this core, plain or compressed.

    seconds: of CPU time for the allocator's lists; the child has twice that by the clock and some
    more, but for the time in which others have the CPUs. exe, root_fd, memory, nice: as
    `explain.run.explain_core` has them. Raises nothing for a bad core, or for a child that fails.
    """
    timeout = 2 * seconds + _AROUND_S
    with contextlib.ExitStack() as stack:
        try:
            fds = [os.open(core, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)]
            stack.callback(os.close, fds[0])
            if not stat.S_ISREG(os.fstat(fds[0]).st_mode):
                return _failed(f"{core} is not a regular file")
            command = child.command(_CHILD, f"/proc/self/fd/{fds[0]}", timeout, memory)
            command += ["--nice", str(nice), "--seconds", str(seconds)]
            if exe is not None:
                with contextlib.suppress(OSError):  # then the core's own path is tried
                    fds.append(os.open(exe, os.O_PATH | os.O_CLOEXEC))
                    stack.callback(os.close, fds[-1])
                    command += ["--exe", f"/proc/self/fd/{fds[-1]}"]
            if root_fd is not None:
                fds.append(root_fd)
                command += ["--root-fd", str(root_fd)]
            document, _ = child.run(command, fds, nice, timeout, MAX_DOCUMENT)
            return msgspec.json.decode(document, type=HeapReport)
        except (OSError, ChildFailed, msgspec.MsgspecError) as error:
            return _failed(str(error).rstrip(": "))


def with_heap(record: Record, report: HeapReport) -> Record:
    """`record` with what its heap said."""
    return msgspec.structs.replace(
        record, heap=report.profiles or None, lost={**record.lost, **report.lost}
    )


def _failed(why: str) -> HeapReport:
    return HeapReport(lost={"heap": why})
