"""A process that nobody holds: it had ended when its memory, pinned beforehand, was looked at."""

from __future__ import annotations

import time

from collector.handoff.handoff import HandOff


class EndedProcess(HandOff):
    """As the other stages know a process that was handed over; it waited for nobody."""

    backend = "armed"

    def __init__(self, pid: int) -> None:
        super().__init__(-1, pid, -1, time.monotonic_ns(), streams=False)
        self.note_release(self.accepted_ns)
