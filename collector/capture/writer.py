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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Never, TypeVar

import msgspec

from collector import __version__
from collector.arch.x86_64 import IP, NO_32_BIT, SP, is_32_bit
from collector.capture.copy import CopiedMemory, HeldMemory, parts_of
from collector.capture.core_file import FILL, core_name, core_writer, write_explain_core
from collector.capture.environment import attributes
from collector.capture.helper import become_helper, yield_to_services
from collector.capture.image import coredump_filter, image_of_evidence, lost_names
from collector.capture.job import (
    GO,
    Copied,
    CopyOrder,
    Explainable,
    Failed,
    Job,
    NeedsRoom,
    Told,
    WriterAnswer,
    Written,
)
from collector.capture.memory import Memory, ProcessMemory
from collector.capture.outline import STACK
from collector.capture.plan import FILE_ONLY, NOT_IN_TIME, Plan, plan_core
from collector.capture.select import select_stacks
from collector.capture.space import SpaceWatch, free_bytes, unseen
from collector.elfcore.notes import with_left_out
from collector.elfcore.types import CorewardNote
from collector.elfcore.writer import Amend, Bounds, Stop, WriteResult, write_core
from collector.errors import CorewardError, Stalled
from collector.linux import procfs
from collector.linux.atomic import atomic_file
from collector.linux.stall import with_stall_guard
from collector.model import Capture
from collector.ranges import Range, outside, union
from collector.redact.types import Redact

if TYPE_CHECKING:
    from collector.capture.redacted import RedactedMemory, Redactor

T = TypeVar("T")
_READ_PATIENCE = 30.0  # seconds that one read of 4 MiB may take


def main() -> Never:
    """Read the job, write the core, answer on standard output."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        job = msgspec.msgpack.decode(file.read(), type=Job)
    become_helper(urgent=job.urgent)
    answer: WriterAnswer
    try:
        answer = _without_core(job) if is_32_bit(job.evidence.text.auxv) else Core(job).answer()
    except (CorewardError, OSError, ValueError) as error:
        answer = Failed(_why(error))
    _say(answer)
    os._exit(0)  # a read that does not return would be waited for


def _without_core(job: Job) -> Written:
    """The record alone: a core of a 32-bit process in the format of 64-bit ones misleads."""
    wanted = job.capture if job.capture is Capture.NONE else Capture.RECORD
    lost = {"frames": NO_32_BIT} if job.explain else {}
    if job.capture not in (Capture.RECORD, Capture.NONE):
        lost["core"] = NO_32_BIT
    return Written(capture=wanted, lost=lost)


class Core:
    """The core of one job."""

    def __init__(self, job: Job) -> None:
        self._deadline = time.monotonic() + job.max_time
        self._job = job
        self._folder = Path(job.folder)
        self._image = image_of_evidence(job.evidence)
        self._held = ProcessMemory(
            job.mem_fd, job.pagemap_fd, self._image.mappings, job.shared_fds, job.root_fd
        )
        self._memory: Memory = self._held
        self._patches = [(p.address, p.data) for p in job.patches]
        self._capture = job.capture
        self._given_up: dict[str, str] = {}  # part of the record -> why
        self._planned: Plan | None = None  # of the first core, where it was made beforehand
        self._smaller_why = ""  # where it is not `self._capture` that was asked for
        self._not_copied = 0  # bytes
        self._in_haste: list[Range] = []  # what there was no time to copy
        self._redactor: Redactor | None = None  # None: nothing is redacted
        if job.copied is not None:
            # as whoever copied it knew the files
            known = ProcessMemory(job.mem_fd, job.pagemap_fd, self._image.mappings, job.shared_fds)
            self._use(CopiedMemory(job.copied, self._image.mappings, known.is_known))

    def answer(self) -> Written:
        """The core, and what is told of its process besides."""
        written = self.write()
        names, stat = self._job.attributes, self._job.evidence.text.stat
        try:
            found = self._guarded(lambda: attributes(stat, names, self._memory.read))
        except Stalled as error:
            lost = {**written.lost, "attributes": str(error)}
            return msgspec.structs.replace(written, lost=lost, secrets=self._secrets())
        return msgspec.structs.replace(written, attributes=found, secrets=self._secrets())

    def _secrets(self) -> dict[str, list[str]]:
        """What is to be hidden in texts about the process."""
        return {} if self._redactor is None else self._redactor.told()

    def write(self) -> Written:
        """The small core for the explainer first, then the one that policy asked for."""
        if self._job.copy is not None:
            self._copy(self._job.copy)
        if self._job.redact.anything:
            self._prepare_to_redact(self._job.redact)
        if self._job.explain:
            try:
                _say(self._guarded(self._small))
            except Stalled as error:
                self._give_memory_up(error, "frames")
            except OSError as error:
                self._given_up["frames"] = f"there is no small core: {_why(error)}"
        if self._job.capture in (Capture.RECORD, Capture.NONE):
            lost = {**lost_names(self._image.mappings), **self._given_up}
            return Written(capture=self._job.capture, lost=lost)
        if self._job.copy is not None:
            _hear()  # until it is our turn
            self._deadline = time.monotonic() + self._job.max_time
        while True:
            try:
                return self._write_core(self._capture)
            except Stalled as error:
                self._give_memory_up(error, "memory")
            except OSError as error:
                smaller = _smaller(self._capture)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or smaller is None:
                    raise
                self._smaller_why = self._does_not_fit(error)
                self._capture = smaller

    def _prepare_to_redact(self, redact: Redact) -> None:
        """Find out what is to be zero, before anything is written."""
        from collector.capture.redacted import Redactor  # noqa: PLC0415 - it loads RE2

        mappings, text = self._image.mappings, self._job.evidence.text
        try:
            read = self._memory.read
            self._redactor = self._guarded(lambda: Redactor(redact, mappings, text, read))
        except Stalled as error:
            self._give_memory_up(error, "memory")
            self._redactor = Redactor(redact, mappings, text, lambda *_: b"")
        self._image = self._redactor.image(self._image)

    def _does_not_fit(self, error: OSError) -> str:
        """Said when what there was of the core is removed again, and its room is free."""
        if error.errno == errno.EDQUOT:
            return "it does not fit into the quota of the store's disk"
        return f"it does not fit into the {free_bytes(self._folder) >> 20} MiB free on the disk"

    def _copy(self, order: CopyOrder) -> None:
        """Let the process go as soon as we have what is wanted of it, or what there is room for."""
        from collector.capture.copier import NoRoom  # noqa: PLC0415 - most writers copy nothing

        job, image = self._job, self._image
        held = HeldMemory(self._held, job.pagemap_fd)
        threads = image.threads if job.capture in (Capture.FULL, Capture.STACKS) else []
        first = select_stacks(image.mappings, threads or image.threads[:1], image.auxv, held.read)
        copied: CopiedMemory | None = None
        if job.capture is Capture.FULL:
            plan = self._plan(Capture.FULL, held)
            rest = union((s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz)
            try:
                copied = self._copied([*first, *outside(rest, first)], order, whole=True)
                self._planned = plan
            except NoRoom:
                self._smaller_why = f"there is no room for a copy, but for {order.room >> 20} MiB"
                self._capture = Capture.STACKS
        self._use(copied or self._copied(first, order, whole=False))
        _say(Copied())
        yield_to_services()

    def _copied(self, wanted: Sequence[Range], order: CopyOrder, *, whole: bool) -> CopiedMemory:
        from collector.capture.copier import make_copy  # noqa: PLC0415

        mappings = self._image.mappings
        parts = parts_of(wanted, self._held, mappings)
        copy = make_copy(parts, order.source, order.room, order.seconds, whole=whole)
        return CopiedMemory(copy, mappings)

    def _use(self, copied: CopiedMemory) -> None:
        """From now on its memory is what was copied of it."""
        self._memory, self._not_copied = copied, copied.missing
        self._in_haste = copied.not_in_time

    def _guarded(self, work: Callable[[], T]) -> T:
        """The result of a look into its memory. Raises Stalled if it keeps us waiting."""
        return with_stall_guard(lambda: self._job.evidence.pid, work)

    def _give_memory_up(self, error: Stalled, part: str) -> None:
        """No memory any more: the thread that looked at it is left behind."""
        self._given_up[part] = str(error)
        if self._capture in (Capture.FULL, Capture.STACKS):
            self._capture = Capture.THREADS

    def _small(self) -> Explainable:
        """The dying thread alone: its stack is enough to say where it died."""
        first = self._image.threads[0]
        source, patches = None, self._patches
        if self._redactor is not None:
            source = self._redactor.view(self._memory, FILL)
            patches = source.pieces(patches)
        fd = self._job.explain_fd
        write_explain_core(fd, self._image, self._memory, patches, STACK, source)
        told = None
        if self._job.evidence.head is not None:
            told = Told(first.tid, first.regs[IP], first.regs[SP], self._image.siginfo)
        return Explainable(
            len(self._image.threads), first.name or None, told, secrets=self._secrets()
        )

    def _plan(self, capture: Capture, memory: Memory) -> Plan:
        job = self._job
        limit = _least(job.memory.max, job.max_bytes, _most_read(job.max_read))
        chosen = coredump_filter(job.evidence.text)
        return plan_core(
            self._image, capture, memory, job.memory, chosen, limit, missing=self._in_haste
        )

    def _write_core(self, capture: Capture) -> Written:
        job = self._job
        plan, self._planned = self._planned, None
        if plan is None:
            plan = self._guarded(lambda: self._plan(capture, self._memory))
        name = core_name(job.compress)
        held = [(s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz]
        source, patches, amend = self._redacted(held)
        with atomic_file(self._folder / name) as fd:
            self._space = SpaceWatch(
                fd, job.min_free, unseen(job.compress, job.writers), _ask_for_room
            )
            result = write_core(
                self._image,
                plan.segments,
                source or self._memory,
                core_writer(fd, job.compress),
                note=self._note(capture, plan),
                overrides=patches,
                amend=amend,
                bounds=Bounds(
                    should_stop=self._space,
                    deadline=self._deadline,
                    patience=_READ_PATIENCE,
                ),
            )
            _check_alive(result)
        return Written(
            name=name,
            size=(self._folder / name).stat().st_blocks * 512,  # final when it is synced
            memory=result.written,
            elided=result.elided,
            capture=capture,
            truncated=plan.truncated or result.truncated,
            lost=self._lost(capture, plan, result) | self._unseen(source),
            redacted={} if source is None else source.counts(held),
        )

    def _redacted(
        self, held: Sequence[Range]
    ) -> tuple[RedactedMemory | None, list[tuple[int, bytes]], Amend | None]:
        """What is written in place of its memory and of what changed since, and who counts it."""
        if self._redactor is None:
            return None, self._patches, None
        source = self._redactor.view(self._memory)
        patches = self._guarded(lambda: source.pieces(self._patches)) if held else []
        return source, patches, lambda note: source.note(note, held)

    def _unseen(self, source: RedactedMemory | None) -> dict[str, str]:
        why = "" if source is None else source.why_unseen
        return {"redaction": why} if why else {}

    def _note(self, capture: Capture, plan: Plan) -> CorewardNote:
        note = CorewardNote(
            record=self._job.record_id,
            version=__version__,
            capture=capture.value,
            consistent=True,
            truncated=plan.truncated,
            redacted=self._job.redact.uncounted,
        )
        return with_left_out(note, plan.left_out)

    def _lost(self, capture: Capture, plan: Plan, result: WriteResult) -> dict[str, str]:
        lost = {**lost_names(self._image.mappings), **self._given_up}
        if "memory" in lost:
            return lost
        if capture is not self._job.capture:
            lost["memory"] = f"{self._smaller_why}: {capture} instead of {self._job.capture}"
        elif result.stopped is not None:
            lost["memory"] = self._why_stopped(result.stopped)
        elif capture not in (Capture.FULL, Capture.STACKS):
            pass  # no memory was wanted
        elif missing := sum(p.end - p.start for p in plan.left_out if p.reason == NOT_IN_TIME):
            lost["memory"] = f"{missing} bytes were not copied {self._job.in_haste}"
        elif plan.truncated:
            lost["memory"] = f"{_missing(plan)} bytes are beyond {self._limit_name()}"
        elif self._not_copied:
            lost["memory"] = f"{self._not_copied} bytes could not be copied while it waited"
        elif any(part.reason == FILE_ONLY for part in plan.left_out):
            missing = sum(p.end - p.start for p in plan.left_out if p.reason == FILE_ONLY)
            lost["memory"] = f"{missing} bytes of mapped files were not in memory, and not read"
        return lost

    def _why_stopped(self, stop: Stop) -> str:
        if stop is Stop.LATE:
            return (
                f"the core ends where {self._job.max_time:g} seconds were over (capture.max_time)"
            )
        if stop is Stop.STALLED:
            return f"the core ends where its memory kept the reader waiting {_READ_PATIENCE:g} s"
        return self._space.why

    def _limit_name(self) -> str:
        job = self._job
        most = _most_read(job.max_read)
        if _least(job.memory.max, job.max_bytes, most) == most:
            return f"{most} bytes, which are read at most (capture.max_read)"
        return "the limit on the core's size"


def _missing(plan: Plan) -> int:
    return sum(part.end - part.start for part in plan.left_out)


def _most_read(policy: int | None) -> int | None:
    """Bytes of memory that are read at most. No process has more than the host."""
    if policy is not None:
        return policy
    meminfo = procfs.read("/proc/meminfo") or b""
    sizes = [procfs.size(meminfo, name) for name in (b"MemTotal", b"SwapTotal")]
    return sum(size or 0 for size in sizes) or None


def _smaller(capture: Capture) -> Capture | None:
    return {Capture.FULL: Capture.STACKS, Capture.STACKS: Capture.THREADS}.get(capture)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _check_alive(result: WriteResult) -> None:
    """All memory unreadable means that the address space went away under us."""
    if result.unreadable_bytes and not result.written:
        raise CorewardError("the process's memory was gone before it could be read")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    return str(error)


def _ask_for_room(written: int, free: int) -> bool:
    _say(NeedsRoom(written, free))
    return _hear() == GO


def _hear() -> bytes:
    """What the agent says next; nothing if it was killed."""
    return os.read(sys.stdin.fileno(), 1)


def _say(answer: WriterAnswer) -> None:
    with contextlib.suppress(BrokenPipeError):  # the agent was killed
        os.write(sys.stdout.fileno(), msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main()
