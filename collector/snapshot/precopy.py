"""All memory of one instant, copied while the process runs: only what changed last needs a stop.

    with Injector(pid) as injector, PreCopy(injector, folder) as precopy:
        precopy.run()                                  # rounds of protect and copy, nobody stopped
        ...
        with StoppedProcess(pid) as stopped:           # in a tracer's thread
            if not precopy.freeze():                   # too much was written since the last round
                ... remote_fork(stopped, injector)     # in the same stop
        memory = precopy.memory(shared_fds)            # a MemorySource of that instant

A round asks the kernel for the pages that were written and protects them again, in one step, and
copies them: whatever is written later is found by a later round. New areas, and what was moved or
mapped anew, are not protected yet and so count as written. In the stop the last changes are copied
into memory that was made before; if they do not fit it says so, and nothing is lost but the work.

What the process itself does not write is not tracked: shared memory is read afterwards, and is not
of that instant. A writer pays one fault per page and round; huge pages into which it writes are
split. When this object is closed, or we die, the kernel forgets all protection.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from collector.arch.x86_64 import PAGE
from collector.capture.image import decode_maps
from collector.capture.memory import ProcessMemory
from collector.elfcore import types
from collector.elfcore.types import VM_HUGETLB, VM_IO, Prot
from collector.elfcore.zeros import nonzero_runs
from collector.errors import CaptureError
from collector.linux.pagemap import Changes, WriteScan
from collector.linux.procfs import thread_with_memory
from collector.ranges import Range, inside, outside, union
from collector.snapshot.gather import Gatherer
from collector.snapshot.inject import Injector
from collector.snapshot.staging import Area, StagedMemory, Staging
from collector.snapshot.stop import critical
from collector.snapshot.userfault import WriteProtection, protection_of

MAX_DIRTY = 64 << 20  # bytes that are copied in the stop, at most
ENOUGH = 1 << 20  # bytes of a round that are not worth another one
MAX_ROUNDS = 10
_SHRINKS = 0.7  # a round that is larger than this part of the one before does not converge
_CHUNK = 256 << 10  # bytes that are copied at a time: they stay in the CPU's cache on their way
_SPAN = 1 << 30  # bytes of addresses that are looked through at a time
_THREAD_NOTES = 16 << 10  # bytes: with AMX state
_LEAST_HEAD = 1 << 20
_GAP = 64 << 20  # bytes of addresses that are not staged, but scanned to save a call


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round: how much was found written and copied, in how many seconds."""

    bytes: int
    seconds: float


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a freeze that needed the stop. Milliseconds; dirty in bytes."""

    dirty: int
    scan_ms: float
    copy_ms: float
    total_ms: float


def worth_staging(m: types.Mapping) -> bool:
    """Whether a mapping may change without anybody else seeing it: private and not just a file."""
    flags = m.vm_flags or 0
    if m.shared or m.special or flags & VM_IO or (m.path or "").startswith(("[v", "anon_inode")):
        return False
    return not m.inode or bool(m.prot & Prot.W) or bool(m.anon_vma)


class PreCopy:
    """The memory of one process on its way to one instant. A context manager.

    folder: where the staging file goes, as large as the memory. core: the file of the core, open
    for reading and writing: then memory is staged in that. wanted: which mappings change and are to
    be in the core (`worth_staging`). max_dirty: bytes that `freeze` copies at most. Entering raises
    InjectionRefused or CaptureError where the process or the kernel does not allow it; best outside
    of a tracer's thread.
    """

    def __init__(
        self,
        injector: Injector,
        folder: Path,
        *,
        core: int | None = None,
        wanted: Callable[[types.Mapping], bool] = worth_staging,
        max_dirty: int = MAX_DIRTY,
    ) -> None:
        self.pid = injector.pid
        self.rounds: list[Round] = []
        self.frozen: Frozen | None = None
        self._injector, self._folder, self._wanted = injector, folder, wanted
        self._core = core
        self._max_dirty = max_dirty
        self._maps = b""
        self._tracking = True
        self._mappings: list[types.Mapping] = []
        self._areas: list[Area] = []
        self._changes = Changes([], [])
        self._failed: list[Range] = []  # could not be read in a round
        self._copied: list[Range] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            memory = self._memory = thread_with_memory(self.pid)
            self._mem = stack.enter_context(_opened(f"/proc/{memory}/mem"))
            pagemap = stack.enter_context(_opened(f"/proc/{memory}/pagemap"))
            self._pagemap = pagemap
            self._scan = WriteScan(pagemap)
            self._gatherer = Gatherer(memory, self._mem, self._max_dirty)
            self._buffer = bytearray(_CHUNK)
            self._staging = stack.enter_context(self._new_staging())
            self._protection: WriteProtection = stack.enter_context(protection_of(self._injector))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_tracking()
        self._open.close()

    # --- while the process runs -----------------------------------------------------------------

    def run(self, progress: Callable[[int], None] | None = None) -> bool:
        """Copy until little is written any more. False: it does not come to that.

        Also then `freeze` may succeed. progress: is given the bytes copied, now and then. Raises
        CaptureError if the process ends or changes its program, OSError if the disk is full.
        """
        while len(self.rounds) < MAX_ROUNDS:
            found = self.round(progress)
            if found.bytes <= ENOUGH:
                return True
            if len(self.rounds) > 2 and found.bytes > _SHRINKS * self.rounds[-2].bytes:
                break
        return self.rounds[-1].bytes <= self._max_dirty // 2

    def round(self, progress: Callable[[int], None] | None = None) -> Round:
        """Copy all that was written since the last round."""
        begun = time.monotonic()
        new = self._look_at_maps()
        copied = 0
        again = bool(self.rounds)  # there may be something where the zero page is now
        try:
            for start, end, _ in self._areas:  # all: one may have been mapped anew
                self._protection.register(start, end)
            written = [
                pages
                for low, high in self._spans()
                for at in range(low & -_SPAN, high, _SPAN)
                for pages in self._scan.protect(max(low, at), min(high, at + _SPAN), zero=again)
            ]
        except OSError as error:
            raise CaptureError(f"process {self.pid} ended, or began another program") from error
        whole = [(area.start, area.end) for area in new if area.whole]
        for start, end in inside(written, self._areas) + whole:
            copied += self._copy(start, end, copied, progress)
        self.rounds.append(Round(bytes=copied, seconds=time.monotonic() - begun))
        return self.rounds[-1]

    @property
    def dirty_rate(self) -> float:
        """Bytes per second that the process wrote to, page by page, as far as is known."""
        last = self.rounds[-2:]
        if len(last) < 2:
            return 0.0
        return last[1].bytes / max(last[0].seconds, 1e-6)

    def _look_at_maps(self) -> list[Area]:
        """Read the mappings; the areas that are new, with room in the staging file."""
        with open(f"/proc/{self._memory}/maps", "rb", buffering=0) as file:
            text = file.readall()
        if not text:
            raise CaptureError(f"process {self.pid} has ended")
        if text == self._maps:
            return []
        self._maps = text
        self._mappings = decode_maps(text)
        areas = [_area(m) for m in self._mappings if self._wanted(m)]
        known = set(self._areas)
        self._areas = areas
        new = [area for area in areas if area not in known]
        self._starts = [area.start for area in areas]
        return new

    def _spans(self) -> list[Range]:
        """The areas, joined where they lie near each other."""
        spans: list[Range] = []
        for start, end, _ in self._areas:
            if spans and start - spans[-1][1] < _GAP and end <= 1 << 47:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return spans

    def _copy(
        self, start: int, end: int, before: int, progress: Callable[[int], None] | None
    ) -> int:
        """Copy memory of one area into the staging file; the first time without what is zero."""
        self._place(start, end)
        self._copied.append((start, end))
        at = start
        while at < end:
            with memoryview(self._buffer)[: min(_CHUNK, end - at)] as view:
                done = 0
                with contextlib.suppress(OSError):
                    done = os.preadv(self._mem, [view], at) & -PAGE
                runs = [(0, done)] if self.rounds else nonzero_runs(self._buffer, done)
                for low, high in runs:
                    self._staging.write(at + low, view[low:high])
                at += done
                if not done:
                    self._failed.append((at, at + PAGE))
                    at += PAGE
            if progress is not None:
                progress(before + at - start)
        return end - start

    def _place(self, start: int, end: int) -> None:
        area = self._areas[bisect.bisect_right(self._starts, start) - 1]
        self._staging.place(start, end, (area.start, area.end))

    # --- in the stop ----------------------------------------------------------------------------

    def freeze(self) -> bool:
        """While the process stands: copy what was written since the last round.

        False: it is more than `max_dirty`, or the mappings changed too much; then nothing is kept.
        Afterwards the process may go on; call `memory` then.
        """
        with critical():
            begun = time.monotonic()
            self._look_at_maps()
            try:
                self._changes = self._scan.look(self._spans())
            except OSError as error:
                raise CaptureError(f"process {self.pid} has ended") from error
            scanned = time.monotonic()
            dirty = inside(self._changes.written, self._areas)
            dirty += outside(self._absent_files(), union(self._failed))
            taken = self._gatherer.take(dirty)
            end = time.monotonic()
        if not taken:
            return False
        self.frozen = Frozen(
            dirty=sum(piece.size for piece in self._gatherer.pieces),
            scan_ms=(scanned - begun) * 1e3,
            copy_ms=(end - scanned) * 1e3,
            total_ms=(end - begun) * 1e3,
        )
        return True

    def _absent_files(self) -> list[Range]:
        """Pages of files that are staged but not present now: they are those of the file again."""
        files = [area for area in self._areas if area.whole]
        return inside(self._changes.absent, files)

    # --- afterwards -----------------------------------------------------------------------------

    def stop_tracking(self) -> None:
        """Take all protection away. The process runs meanwhile; safe to call again.

        Piece by piece: the kernel lets no page fault through while it clears the marks of an area,
        25 ms/GiB.
        """
        if self._tracking:
            self._tracking = False
            for start, end, _ in self._areas:
                self._protection.unregister(start, end)
            self._protection.close()

    def memory(self, shared_fds: Mapping[int, int], root_fd: int | None = None) -> StagedMemory:
        """The memory at the instant of `freeze`; good as long as this object is open.

        shared_fds, root_fd: as ProcessMemory has them. OSError if the disk is full.
        """
        if self.frozen is None:
            raise RuntimeError("nothing was frozen")
        self.stop_tracking()
        for piece in self._gatherer.pieces:
            self._place(piece.address, piece.address + piece.size)
            self._staging.write(piece.address, self._gatherer.view(piece))
        live = ProcessMemory(self._mem, self._pagemap, self._mappings, shared_fds, root_fd)
        taken = [(piece.address, piece.address + piece.size) for piece in self._gatherer.pieces]
        failed = outside(union(self._failed), sorted(taken))
        return StagedMemory(
            self._staging,
            self._areas,
            outside([(a, b) for a, b, _ in self._areas], self._changes.absent),
            sorted(failed + self._gatherer.unreadable),
            live,
            [*self._copied, *taken],
        )

    def _new_staging(self) -> Staging:
        if self._core is None:
            return Staging(self._folder)
        return Staging(self._core, _head_room(self.pid))

    @property
    def mappings(self) -> Sequence[types.Mapping]:
        """The mappings at the instant, as /proc/PID/maps tells them."""
        return self._mappings


def _head_room(pid: int) -> int:
    """Bytes before the memory, for the head of a core with twice as many threads and mappings."""
    threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    with open(f"/proc/{thread_with_memory(pid)}/maps", "rb") as file:
        text = file.read()
    # a line of maps is longer than a program header, and its path is in the notes once more
    return 2 * (2 * len(text) + threads * _THREAD_NOTES) + _LEAST_HEAD & -PAGE


def _area(m: types.Mapping) -> Area:
    huge = (m.vm_flags or 0) & VM_HUGETLB or (m.path or "").startswith("/anon_hugepage")
    return Area(m.start, m.end, bool(m.inode) and not huge)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
