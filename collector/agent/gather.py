"""gather: everything of a process that its end destroys, as the native part has it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from collector.capture.job import Patch
from collector.capture.process import OpenProcess, ProcText
from collector.errors import HoldError
from collector.handoff.handoff import HandOff
from collector.handoff.native import Taken
from collector.handoff.pin import Pin
from collector.linux.memory import LevelKey


@dataclasses.dataclass(kw_only=True)
class Gathered:
    """A process that was handed over. `close` releases it, and ends the use of its memory."""

    handoff: HandOff
    dying: OpenProcess
    threads: memoryview | None  # raw records of the task iterators
    mappings: memoryview | None
    head: bytearray | None  # else: the head of the kernel's own core stream
    patches: list[Patch]
    shared_fds: dict[int, int]  # start of a shared mapping -> descriptor of its file
    unopened: int  # shared mappings whose file has no name and is not in shared_fds
    address: int  # of memory that can be read, for a pin; 0: none
    others: int  # processes that share its memory and go on; -1, -2: see handoff.h
    spared: bool  # it was released without a pin, and nothing of its memory is there
    pin: Pin | None  # of a process that is not held any more
    size: int  # of that: private memory in bytes, what a restarted instance must allocate again
    open: contextlib.ExitStack  # all that is to be closed
    levels: tuple[LevelKey, ...] = ()  # memory cgroups with a limit above it, and its owner
    owner: LevelKey | None = None  # whose share of the pins it uses
    first: int | None = None  # the thread that is shown first, in its own pid namespace
    code_fds: Mapping[int, int] = dataclasses.field(default_factory=dict)  # of code without a name
    in_haste: str = "while others waited (release.shared)"  # of what a copy lacks
    resident: int | None = None  # bytes, of one that had ended before; else `dying` tells
    descriptors: bytes = b""  # see collector.linux.open_files.decode; empty: not listed

    def close(self) -> None:
        self.open.close()

    @property
    def kept_bytes(self) -> int:
        """What is kept of it in our own memory until its core is written."""
        parts = (self.threads, self.mappings, self.head)
        return sum(len(part) for part in parts if part is not None)


def gather(taken: Taken) -> Gathered:
    """What was taken; all that is open of it is the result's.

    Without BPF the kernel's notes are read here. Raises HoldError if the process could not be had
    whole; then nothing of it is open any more.
    """
    handoff = taken.handoff
    with contextlib.ExitStack() as undo:
        undo.callback(taken.close)
        if taken.why:
            raise HoldError(f"it could not be gathered: {taken.why}")
        head = handoff.read_notes() if taken.threads is None else None
        files = list(taken.files.values())
        dying = OpenProcess.adopt(handoff.pid, taken.tid, files, _text(taken), taken.core_limit)
        undo.pop_all()
    for fd in (*taken.shared_fds.values(), *taken.code_fds.values()):
        dying.keep(fd)
    open_ = contextlib.ExitStack()
    open_.callback(handoff.release)
    open_.callback(dying.close)
    if taken.pin is not None:
        open_.callback(taken.pin.release)
    return Gathered(
        handoff=handoff,
        dying=dying,
        threads=taken.threads,
        mappings=taken.mappings,
        head=head,
        patches=[Patch(*word) for word in taken.words],
        shared_fds=taken.shared_fds,
        code_fds=taken.code_fds,
        unopened=taken.unopened,
        address=taken.address,
        others=taken.others,
        spared=taken.spared,
        pin=taken.pin,
        size=taken.size,
        levels=taken.levels,
        owner=taken.owner,
        open=open_,
        descriptors=taken.texts["descriptors"],
    )


def _text(taken: Taken) -> ProcText:
    """Only where there is no BPF the mappings come from /proc."""
    texts = {name: text for name, text in taken.texts.items() if name != "descriptors"}
    maps = texts.pop("maps")
    return ProcText(**texts, maps=maps if taken.mappings is None else None)
