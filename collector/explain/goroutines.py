"""The goroutines of a core, those at the same place together. In the explaining child only.

`go_runtime` reads them; what their frames are called says the unwinder, as of threads.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence

from collector import siginfo
from collector.arch.x86_64 import REGISTERS, Reg
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.exported import Absent
from collector.explain.go_runtime import KEPT, Go, Goroutine, find_go
from collector.explain.modules import text
from collector.model import Frame, GoroutineGroup, Goroutines

_MOST = 1 << 17  # goroutines that are looked at
_SECONDS, _ALL_SECONDS = 2.0, 10.0  # of CPU, to read them; 100,000 take 4
_UNWIND_SECONDS = 2.0  # and for the frames of the groups
_GROUPS, _ALL_GROUPS = 10, 100
_FRAMES = 24  # of a group
_IDS = 8

_Place = tuple[str, int | None, tuple[int, ...]]
_Unwind = Callable[[Sequence[int], int], list[Frame]]


class Golang:
    """The Go runtime of a core's process, if it has one. code: reads what is in a file only."""

    def __init__(self, core: CoreFile, code: Callable[[int, int], bytes]) -> None:
        self._core, self._code = core, code
        self._go: Go | None = None
        self.lost: dict[str, str] = {}
        try:
            self._go = find_go(self._memory, core.mappings, core.auxv or b"")
        except (Absent, struct.error) as error:
            self.lost["goroutines"] = text(str(error))

    def _memory(self, address: int, size: int) -> bytes:
        with contextlib.suppress(CoreFormatError, OverflowError):
            return self._core.read(address, size)
        return b""

    def _anywhere(self, address: int, size: int) -> bytes:
        return self._memory(address, size) or self._code(address, size)

    def message(self) -> str | None:
        """What it panicked with; of a process that aborted."""
        told = siginfo.decode(self._core.siginfo or b"")
        if self._go is None or told is None or told.signal != signal.SIGABRT:
            return None
        with contextlib.suppress(Absent, struct.error):
            said = self._go.message(self._anywhere, _MOST)
            return None if said is None else text(said).strip() or None
        return None

    def goroutines(self, unwind: _Unwind, *, whole: bool) -> Goroutines | None:
        """unwind: the frames of a thread that has these registers, at most so many. whole: of a
        core that has all memory, for somebody who asks for it."""
        if self._go is None:
            return None
        until = time.process_time() + (_ALL_SECONDS if whole else _SECONDS)
        groups: dict[_Place, list[Goroutine]] = {}
        counted: Counter[_Place] = Counter()
        lost = None
        try:
            for number, one in enumerate(self._go.goroutines(_MOST)):
                place = one.state, one.pc, one.callers
                counted[place] += 1
                group = groups.setdefault(place, [])
                if len(group) < _IDS:
                    group.append(one)
                if number % 256 == 0 and time.process_time() > until:
                    lost = f"there was no time for more than {number + 1}"
                    break
        except (Absent, struct.error):
            lost = "the others are not in this core"
            if not whole and self._go.count > KEPT:
                lost = f"the first {KEPT} were looked at"
        if self._go.count > _MOST:
            lost = f"the first {_MOST} were looked at"
        states: Counter[str] = Counter()
        for (state, _, _), count in counted.items():
            states[state] += count
        until = time.process_time() + _UNWIND_SECONDS
        shown = counted.most_common(_ALL_GROUPS if whole else _GROUPS)
        return Goroutines(
            version=text(self._go.version),
            count=self._go.count,
            states=dict(states),
            groups=[self._group(groups[place], count, unwind, until) for place, count in shown],
            lost=lost,
        )

    def _group(
        self, group: list[Goroutine], count: int, unwind: _Unwind, until: float
    ) -> GoroutineGroup:
        first = group[0]
        frames: list[Frame] = []
        if first.pc is not None:
            if time.process_time() < until:
                with contextlib.suppress(Exception):  # drgn has many
                    frames = unwind(_registers(first), _FRAMES)
            if len(frames) < 2:  # without unwind information
                pcs = itertools.chain([first.pc], first.callers)
                frames = [*frames[:1], *(Frame(pc=pc) for pc in pcs)][:_FRAMES]
        return GoroutineGroup(
            state=first.state, count=count, ids=[one.id for one in group], frames=frames
        )


def _registers(one: Goroutine) -> list[int]:
    registers = [0] * REGISTERS
    registers[Reg.RIP], registers[Reg.RSP], registers[Reg.RBP] = one.pc or 0, one.sp, one.bp
    return registers
