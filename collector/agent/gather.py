"""Everything of a process that its end destroys, as the native part has gathered it."""

from __future__ import annotations

import contextlib
import dataclasses

from collector.capture.job import Patch
from collector.capture.process import OpenProcess, ProcText
from collector.errors import HoldError
from collector.handoff.native import Taken
from collector.handoff.pin import Pin


@dataclasses.dataclass(kw_only=True)
class Gathered:
    """What was found. `close` ends its use."""

    dying: OpenProcess
    threads: memoryview | None  # raw records of the task iterators
    mappings: memoryview | None
    head: bytearray | None  # else: the head of the kernel's own core stream
    patches: list[Patch]
    shared_fds: dict[int, int]  # start of a shared mapping -> descriptor of its file
    address: int  # of memory that can be read, for a pin; 0: none
    pin: Pin | None = None  # of a process that is not held any more
    size: int = 0  # of that: private memory in bytes, what a restarted instance must allocate again

    def close(self) -> None:
        if self.pin is not None:
            self.pin.release()
        self.dying.close()


def gather(taken: Taken) -> Gathered:
    """What was taken, whose descriptors and pin are the result's; the hand-off stays the caller's.

    Without BPF the kernel's notes are read here. Raises HoldError if the process could not be had
    whole.
    """
    handoff = taken.handoff
    if taken.why:
        raise HoldError(f"it could not be gathered: {taken.why}")
    with contextlib.ExitStack() as undo:
        text = _text(taken)
        dying = OpenProcess.adopt(
            handoff.pid, taken.tid, list(taken.files.values()), text, taken.core_limit
        )
        undo.callback(dying.close)
        for fd in taken.shared_fds.values():
            dying.keep(fd)
        found = Gathered(
            dying=dying,
            threads=taken.threads,
            mappings=taken.mappings,
            head=handoff.read_notes() if taken.threads is None else None,
            patches=[Patch(*word) for word in taken.words],
            shared_fds=taken.shared_fds,
            address=taken.address,
            pin=taken.pin,
            size=taken.size,
        )
        undo.pop_all()
        return found


def _text(taken: Taken) -> ProcText:
    """Only where there is no BPF the mappings come from /proc."""
    texts = dict(taken.texts)
    maps = texts.pop("maps")
    return ProcText(**texts, maps=maps if taken.mappings is None else None)
