"""copy: where its cgroup has no room for a successor, a process goes when its memory is ours.

A copier copies all that a full core can have of it, at once; then the process is let go, and its
core is written in its turn like all others. Where there is no room for so much, or its mappings do
not tell what is wanted, a writer looks into its memory first, has that copied, and waits for its
turn. A lane of its own, for a process waits: behind no core that is being written. However long the
copy takes, the process does not wait longer than its size allows.

A process whose memory others go on using, as the parent of a child of vfork(2) does that waits for
it, is copied as far as a short time goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from collector.agent.crash import Crash
from collector.arch.x86_64 import SP
from collector.capture.copier import NoRoom, make_copy
from collector.capture.job import Copied, CopyOrder, WriterAnswer
from collector.capture.parts import Copy, Source
from collector.elfcore.types import Mapping
from collector.errors import HoldError, ProbeError
from collector.handoff.handoff import HandOff
from collector.handoff.pin import Pin
from collector.linux import procfs
from collector.linux.memory import read_levels
from collector.linux.pidfd import has_ended
from collector.model import Capture

log = logging.getLogger(__name__)

Answers = Generator[WriterAnswer, None, None]

LEAST_ROOM = 16 << 20  # bytes: stacks are copied in any case
_WRITER_SIZE = 48 << 20  # bytes that a writer needs besides
_SECONDS, _PER_BYTE = 2.0, 4.0 / (1 << 30)  # several times what it takes on a busy machine
_GRACE_S = 2.0  # for a writer whose copier did not keep to its time
_EXIT_S = 1.0
_SIZES = (b"RssAnon", b"RssShmem", b"RssFile", b"VmSwap")


class Copies:
    """The account of memory that copies in the making may take. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promised = 0

    @contextlib.contextmanager
    def room(self, wanted: int, share: float) -> Generator[int, None, None]:
        """So many bytes for a copy: at most `wanted`, or what is left of a share of free memory."""
        with self._lock:
            free = min(_host_available(), _own_headroom())
            room = max(min(wanted, int(free * share) - self._promised), LEAST_ROOM)
            self._promised += room
        try:
            yield room
        finally:  # what was taken of it is no free memory any more
            with self._lock:
                self._promised -= room


def order_for(crash: Crash, room: int, shared: float) -> CopyOrder:
    """To copy what it has within `room` bytes, while it is held.

    shared: seconds since the hand-off for one whose memory others go on using.
    """
    gathered = crash.gathered
    dying = gathered.dying
    if gathered.others:
        since = time.monotonic() - gathered.handoff.accepted_ns / 1e9
        seconds = max(shared - since, 0)
    else:
        seconds = _SECONDS + size_of(dying.text.status) * _PER_BYTE
    source = Source(dying.tid, gathered.handoff.pidfd, dying.mem_fd, dying.pagemap_fd)
    return CopyOrder(room, seconds, source)


def size_of(status: bytes) -> int:
    """Bytes of memory that a core can have at most of what is there."""
    return sum(procfs.size(status, name) or 0 for name in _SIZES)


def copy_at_once(crash: Crash, order: CopyOrder, most: int | None) -> Copy | None:
    """A copy of all that a full core can have, if the mappings tell it and there is room.

    most: bytes of memory that may be read; None: no limit. None if a writer has to select. It is
    open for as long as what was gathered. Raises CaptureError and OSError as make_copy does.
    """
    from collector.capture.outline import outline  # noqa: PLC0415 - half a MB; few agents copy

    gathered, decided, fatal = crash.gathered, crash.decided, crash.seen.fatal
    dying, choice = gathered.dying, decided.decision.action.memory
    if decided.admission.capture is not Capture.FULL or fatal is None:
        return None
    if most is not None and size_of(dying.text.status) > most:
        return None
    try:
        parts = outline(dying, gathered.mappings, gathered.shared_fds, fatal.regs[SP], choice)
        if parts is None:
            return None
        copy = make_copy(parts, order.source, order.room, order.seconds, whole=True)
    except (NoRoom, ProbeError):
        return None
    gathered.open.callback(os.close, copy.fd)
    return copy


def copy_in_time(crash: Crash, order: CopyOrder, most: int | None) -> Copy:
    """A copy, its stack first, of as much as the time allows. The process is released then.

    Nobody waits for a writer, which would start later than that. most: as for copy_at_once. Raises
    CaptureError and OSError as make_copy does; the process is released even so.
    """
    from collector.capture import outline  # noqa: PLC0415 - half a MB; few agents copy

    gathered, decided = crash.gathered, crash.decided
    room = order.room if most is None else min(order.room, most)
    try:
        mappings, sp = _mappings_and_stack(crash)
        if mappings is None:
            parts = outline.hasty_stack(sp)
            _lower(crash, "its mappings are more than can be looked at while others wait")
        else:
            parts = outline.hasty_outline(
                gathered.dying,
                mappings,
                gathered.shared_fds,
                sp,
                decided.decision.action.memory,
                decided.admission.capture,
            )
        copy = make_copy(parts, order.source, room, order.seconds, copied=gathered.handoff.release)
    finally:
        gathered.handoff.release()
    gathered.open.callback(os.close, copy.fd)
    return msgspec.structs.replace(copy, hasty=True)


def _mappings_and_stack(crash: Crash) -> tuple[Sequence[Mapping] | None, int]:
    """None: they are too many. Without BPF the kernel's notes tell both."""
    from collector.capture import image, outline  # noqa: PLC0415

    gathered, fatal = crash.gathered, crash.seen.fatal
    if gathered.head is not None:
        told = image.image_of_head(gathered.head, gathered.dying.text)
        return told.mappings, told.threads[0].regs[SP]
    sp = 0 if fatal is None else fatal.regs[SP]
    return outline.few_mappings(gathered.dying, gathered.mappings), sp


def _lower(crash: Crash, why: str) -> None:
    """A core without memory, if one with memory was wanted: none of it is copied."""
    admission = crash.decided.admission
    if admission.capture in (Capture.FULL, Capture.STACKS):
        lower = msgspec.structs.replace(admission, capture=Capture.THREADS)
        crash.decided = msgspec.structs.replace(crash.decided, admission=lower)
        crash.lose("memory", why)


def wait_for_copy(crash: Crash, answers: Answers, seconds: float) -> tuple[WriterAnswer, float]:
    """Start the writer, and let the process go when it has a copy; its answer, and ms of waiting.

    If there is none after `seconds` the process goes without.
    """
    handoff = crash.gathered.handoff
    late = threading.Timer(seconds + _GRACE_S, partial(_too_late, crash, handoff))
    late.daemon = True
    late.start()
    try:
        first = next(answers)
    finally:
        late.cancel()
    return first, let_go(crash) if isinstance(first, Copied) else handoff.release()


def _too_late(crash: Crash, handoff: HandOff) -> None:
    crash.lose("copy", "its memory kept us waiting")
    handoff.release()


def let_go(crash: Crash) -> float:
    """Release a process whose memory nobody needs any more: we free that, its parent need not wait.

    A few milliseconds for each 100 MiB, while its successor starts.
    """
    handoff, dying = crash.gathered.handoff, crash.gathered.dying
    try:
        pidfd = os.dup(handoff.pidfd)
    except OSError:
        return handoff.release()
    try:
        with Pin(dying.mem_fd, crash.gathered.address):
            held_ms = handoff.release()
            has_ended(pidfd, _EXIT_S)
            return held_ms
    except HoldError:
        return handoff.release()
    finally:
        os.close(pidfd)


def _host_available() -> int:
    return procfs.size(procfs.read("/proc/meminfo") or b"", b"MemAvailable") or 0


def _own_headroom(proc: Path = Path("/proc"), cgroups: str = "/sys/fs/cgroup") -> int:
    """Bytes that writers may still take: they are in our own memory cgroup."""
    levels = read_levels(procfs.read(f"{proc}/self/cgroup") or b"", cgroups) or ()
    headroom = min((level.headroom for level in levels), default=1 << 62)
    return max(0, headroom - _WRITER_SIZE)
