"""heap: of what ran out of memory, what its allocator says by its core. Nobody waits for it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.explain import Files
from collector.agent.export import end
from collector.agent.facts import OfHeap

log = logging.getLogger(__name__)

_NICE = 19  # of who reads: nobody waits for it


def read_heap(context: Context, crash: Crash, core: Path) -> None:
    """Have the heap of a complete core read; never waits. The record stays open until then."""
    dying = crash.gathered.dying
    try:
        files = Files.duplicate(dying.root_fd, dying.exe_fd, dying.mount_fd)
    except OSError as error:  # no descriptors left
        crash.lose("heap", f"its files cannot be kept open: {error.strerror}")
        return
    crash.begin("heap")
    give_up = partial(_give_up, context, crash, files)
    if not context.lanes.kills.submit(
        partial(_read, context, crash, core, files),
        dropped=partial(give_up, "the agent was stopped before"),
        owner=crash.gathered.owner,
    ):
        give_up("too many explanations were waiting already")


def _give_up(context: Context, crash: Crash, files: Files, why: str) -> None:
    files.close()
    crash.lose("heap", why)
    end(context, crash, "heap")


def _read(context: Context, crash: Crash, core: Path, files: Files) -> None:
    from collector.heap.run import heap_of_core  # noqa: PLC0415 - few processes run out of memory

    exe = None if files.exe is None else Path(f"/proc/self/fd/{files.exe}")
    try:
        report = heap_of_core(core, exe=exe, root_fd=files.root, nice=_NICE)
    except Exception as error:  # its record must be closed all the same
        log.exception("record %s", crash.record.id)
        _give_up(context, crash, files, f"the agent failed: {error!r}")
        return
    files.close()
    crash.learn(OfHeap(heap=report.known))
    for part, why in report.lost.items():
        crash.lose(part, why)
    end(context, crash, "heap")
