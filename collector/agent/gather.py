"""Everything of a held process that its end would destroy: gathered before its release."""

from __future__ import annotations

import contextlib
import dataclasses

from collector.capture.dying import Patch, exit_patches
from collector.capture.process import OpenProcess
from collector.handoff.handoff import HandOff
from collector.handoff.pin import Pin
from collector.probe import Probe
from collector.probe.iterators import exit_words, unlinked_shared


@dataclasses.dataclass(kw_only=True)
class Gathered:
    """What was found. `close` ends its use."""

    dying: OpenProcess
    threads: memoryview | None  # raw records of the task iterators
    mappings: memoryview | None
    head: bytearray | None  # else: the head of the kernel's core stream
    patches: list[Patch]
    shared_fds: dict[int, int]  # start of a shared mapping -> descriptor of its file
    pin: Pin | None = None  # of a process that is not held any more
    size: int = 0  # bytes that a successor of that needs anew

    def close(self) -> None:
        if self.pin is not None:
            self.pin.release()
        self.dying.close()


def gather(handoff: HandOff, probe: Probe | None) -> Gathered:
    """Gather without the native part. The process stays held.

    Raises CaptureError, ProbeError or HoldError if the process can not be had whole.
    """
    with contextlib.ExitStack() as undo:
        # without BPF only /proc tells the names of mappings
        dying = undo.enter_context(OpenProcess(handoff.pid, with_maps=probe is None))
        handoff.answer(stream=probe is None)
        threads = mappings = head = None
        words: list[tuple[int, int]] = []
        if probe is None:
            head = handoff.read_notes()
        else:
            threads = probe.threads(handoff.pid)
            mappings = probe.mappings(handoff.pid)
            words = [(w.clear_child_tid, w.robust_list) for w in exit_words(threads)]
        found = Gathered(
            dying=dying,
            threads=threads,
            mappings=mappings,
            head=head,
            patches=exit_patches(dying.tid, dying.pagemap_fd, words),
            shared_fds=dying.open_shared(unlinked_shared(mappings)) if mappings else {},
        )
        undo.pop_all()
        return found
