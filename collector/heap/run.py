"""Read a core's heap in a process of its own, as `explain.run` has a core explained.

Whatever goes wrong in the child becomes a report whose `lost["heap"]` says what.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from collector.explain import child
from collector.explain.child import Bounds, ChildFailed
from collector.heap.types import MAX_DOCUMENT, HeapReport
from collector.model import Record

_CHILD = "collector.heap"
SECONDS = 2.0  # for the allocator's lists
_AROUND_S = 3.0  # seconds for what is around: to start, and to open a core of 60,000 mappings


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

    seconds: of CPU time for the allocator's lists; by the clock the child has twice that, and three
    seconds more, but for the time in which others have the CPUs. exe, root_fd, memory, nice: as
    `explain.run.explain_core` has them. Raises nothing for a bad core, or for a child that fails.
    """
    bounds = Bounds(2 * seconds + _AROUND_S, memory, MAX_DOCUMENT, nice)
    more = ["--seconds", str(seconds)]
    try:
        with child.opened(core, exe) as (fd, exe_fd):
            document, _ = child.ask(_CHILD, bounds, core=fd, exe=exe_fd, root=root_fd, more=more)
        return msgspec.json.decode(document, type=HeapReport)
    except (OSError, ChildFailed, msgspec.MsgspecError) as error:
        return HeapReport(lost={"heap": str(error).rstrip(": ")})


def with_heap(record: Record, report: HeapReport) -> Record:
    """`record` with what its heap said."""
    return msgspec.structs.replace(record, heap=report.known, lost={**record.lost, **report.lost})
