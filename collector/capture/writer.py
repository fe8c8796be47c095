"""The process that writes one core: `python -m collector.capture.writer JOB_FD`.

It has the descriptors of a dead or held process and decodes what came from it, so it is expendable:
it may be slow, it may be killed by its limits, and it takes nothing but its own core with it. When
the agent dies it dies too; what it had not finished has a temporary name that the store clears.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from collector import __version__
from collector.arch.x86_64 import IP, SP
from collector.capture.core_file import core_name, core_writer, write_explain_core
from collector.capture.helper import become_helper
from collector.capture.image import coredump_filter, image_of_job
from collector.capture.job import (
    EXPLAIN_CORE,
    Explainable,
    Failed,
    Job,
    Told,
    WriterAnswer,
    Written,
)
from collector.capture.memory import ProcessMemory
from collector.capture.plan import Plan, plan_core
from collector.elfcore.notes import with_left_out
from collector.elfcore.types import CorewardNote
from collector.elfcore.writer import Bounds, WriteResult, atomic_file, write_core
from collector.errors import CorewardError
from collector.model import Capture

EXPLAIN_STACK = 1 << 20  # bytes of the dying thread's stack that the explainer gets
_CHECK_EVERY = 64 << 20  # bytes between looks at the free space


def main() -> int:
    """Read the job, write the core, answer on standard output."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        job = msgspec.msgpack.decode(file.read(), type=Job)
    become_helper(urgent=job.urgent)
    answer: WriterAnswer
    try:
        answer = Core(job).write()
    except (CorewardError, OSError, ValueError) as error:
        answer = Failed(_why(error))
    _say(answer)
    return 0


class Core:
    """The core of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = Path(job.folder)
        self._image = image_of_job(job)
        self._memory = ProcessMemory(
            job.mem_fd, job.pagemap_fd, self._image.mappings, job.shared_fds
        )
        self._patches = [(p.address, p.data) for p in job.patches]

    def write(self) -> Written:
        """The small core for the explainer first, then the one that policy asked for."""
        if self._job.explain:
            self._write_small()
        if self._job.capture in (Capture.RECORD, Capture.NONE):
            return Written(capture=self._job.capture)
        capture: Capture = self._job.capture
        while True:
            try:
                return self._write_core(capture)
            except OSError as error:
                smaller = _smaller(capture)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or smaller is None:
                    raise
                capture = smaller

    def _write_small(self) -> None:
        """The dying thread alone: its stack is enough to say where it died."""
        first = self._image.threads[0]
        path = self._folder / EXPLAIN_CORE
        write_explain_core(path, self._image, self._memory, self._patches, EXPLAIN_STACK)
        told = None
        if self._job.head is not None:
            told = Told(first.tid, first.regs[IP], first.regs[SP], self._image.siginfo)
        name = first.name or None
        _say(Explainable(str(path), len(self._image.threads), name, told))

    def _write_core(self, capture: Capture) -> Written:
        job, memory = self._job, self._memory
        limit = _least(job.memory.max, job.max_bytes)
        plan = plan_core(self._image, capture, memory, job.memory, coredump_filter(job.text), limit)
        name = core_name(job.compress)
        with atomic_file(self._folder / name) as fd:
            result = write_core(
                self._image,
                plan.segments,
                memory,
                core_writer(fd, job.compress),
                note=self._note(capture, plan),
                overrides=self._patches,
                bounds=Bounds(should_stop=_space_watch(fd, job.min_free)),
            )
            _check_alive(result)
        return Written(
            name=name,
            size=(self._folder / name).stat().st_blocks * 512,  # final when it is synced
            memory=result.written,
            elided=result.elided,
            capture=capture,
            truncated=plan.truncated or result.truncated,
            lost=self._lost(capture, plan, result),
        )

    def _note(self, capture: Capture, plan: Plan) -> CorewardNote:
        note = CorewardNote(
            record=self._job.record_id,
            version=__version__,
            capture=capture.value,
            consistent=True,
            truncated=plan.truncated,
        )
        return with_left_out(note, plan.left_out)

    def _lost(self, capture: Capture, plan: Plan, result: WriteResult) -> dict[str, str]:
        lost = {}
        if capture is not self._job.capture:
            lost["memory"] = f"the disk is full: {capture} instead of {self._job.capture}"
        elif result.truncated:
            lost["memory"] = "the core ends where the disk's reserve (store.min_free) begins"
        elif plan.truncated:
            missing = sum(r.end - r.start for r in plan.left_out)
            lost["memory"] = f"{missing} bytes are beyond the limit on the core's size"
        return lost


def _smaller(capture: Capture) -> Capture | None:
    return {Capture.FULL: Capture.STACKS, Capture.STACKS: Capture.THREADS}.get(capture)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _space_watch(fd: int, min_free: int) -> Callable[[], bool]:
    """Says when the file system has no more than `min_free` bytes left; looks now and then."""
    state: Iterator[bool] = _free_checks(fd, min_free)
    return lambda: next(state)


def _free_checks(fd: int, min_free: int) -> Iterator[bool]:
    seen = -_CHECK_EVERY
    while True:
        written = os.fstat(fd).st_blocks * 512
        full = False
        if written - seen >= _CHECK_EVERY:
            seen = written
            space = os.fstatvfs(fd)
            full = space.f_bavail * space.f_frsize < min_free
        yield full


def _check_alive(result: WriteResult) -> None:
    """All memory unreadable means that the address space went away under us."""
    if result.unreadable_bytes and not result.written:
        raise CorewardError("the process's memory was gone before it could be read")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    return str(error)


def _say(answer: WriterAnswer) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent was killed
        os.write(sys.stdout.fileno(), msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
