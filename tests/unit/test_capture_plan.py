"""What goes into a core within a limit, and what is said of the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from collector.arch.x86_64 import PAGE, SP
from collector.capture import plan as planning
from collector.capture.memory import ProcessMemory
from collector.capture.plan import FILE_ONLY, NOT_IN_TIME, Plan, plan_core
from collector.elfcore.types import LeftOut, Mapping, ProcessImage, Prot, Segment, Thread
from collector.model import Capture
from collector.policy.types import MemoryChoice
from collector.ranges import Range, inside

RW = Prot.R | Prot.W
FILTER = 0x33


def anon(start: int, pages: int, path: str | None = None) -> Mapping:
    return Mapping(
        start=start, end=start + pages * PAGE, prot=RW, vm_flags=0, anon_vma=True, path=path
    )


SMALL, LARGE = anon(0x10_0000, 4), anon(0x20_0000, 100)
STACK = anon(0x7000_0000, 8, "[stack]")
REGISTERS = tuple(STACK.end - 2 * PAGE + 256 if i == SP else 0 for i in range(27))
IMAGE = ProcessImage(threads=[Thread(tid=1, regs=REGISTERS)], mappings=[SMALL, LARGE, STACK])


class Memory:
    """All pages exist but those in `absent`."""

    def __init__(self, *absent: tuple[int, int], unknown: Sequence[Range] = ()) -> None:
        self._absent = absent
        self._unknown = unknown

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for low, high in sorted(self._absent):
            if start < high and low < end:
                if start < low:
                    yield start, low
                start = max(start, high)
        if start < end:
            yield start, end

    def unknown(self, start: int, end: int) -> list[tuple[int, int]]:
        return inside([(start, end)], self._unknown)

    def read(self, address: int, size: int) -> bytes:
        return b""


def plan(
    capture: Capture = Capture.FULL,
    *,
    limit: int | None = None,
    choice: MemoryChoice | None = None,
    memory: Memory | None = None,
) -> Plan:
    """`limit` is in pages."""
    source = cast(ProcessMemory, memory or Memory())
    most = None if limit is None else limit * PAGE
    return plan_core(IMAGE, capture, source, choice or MemoryChoice(), FILTER, most)


def whole(one: Mapping, filesz: int | None = None) -> Segment:
    held = one.size if filesz is None else filesz
    return Segment(vaddr=one.start, memsz=one.size, filesz=held, flags=RW)


EVERYTHING = [whole(SMALL), whole(LARGE), whole(STACK)]
BEYOND = "beyond the limit of {} bytes"


def test_without_a_limit_all_is_kept() -> None:
    assert plan() == Plan(segments=EVERYTHING, left_out=[])


def test_what_was_not_copied_is_left_out() -> None:
    # GIVEN the end of a mapping, for which there was no time
    gap = (LARGE.end - 2 * PAGE, LARGE.end)
    result = plan_core(
        IMAGE,
        Capture.FULL,
        cast(ProcessMemory, Memory()),
        MemoryChoice(),
        FILTER,
        None,
        missing=[gap],
    )
    assert result.truncated
    assert result.left_out == [LeftOut(*gap, NOT_IN_TIME)]
    held = {s.vaddr: s.filesz for s in result.segments if s.filesz}
    assert held[LARGE.start] == LARGE.size - 2 * PAGE


@pytest.mark.parametrize("limit", [112, 200])
def test_what_fits_is_kept_whole(limit: int) -> None:
    assert plan(limit=limit) == Plan(segments=EVERYTHING, left_out=[])


def test_only_memory_that_exists_counts() -> None:
    # GIVEN a large mapping of which 90 pages were never touched
    memory = Memory((LARGE.start, LARGE.start + 90 * PAGE))
    assert plan(limit=22, memory=memory) == Plan(segments=EVERYTHING, left_out=[])
    assert plan(limit=21, memory=memory).truncated


def test_stacks_come_first_then_what_is_small() -> None:
    # GIVEN room for the innermost part of the stack, the small mapping, the rest of the stack,
    # and ten pages more
    result = plan(limit=22)
    # THEN the large mapping is cut, and what is missing is named
    cut = LARGE.start + 10 * PAGE
    assert result == Plan(
        segments=[
            whole(SMALL),
            Segment(vaddr=LARGE.start, memsz=10 * PAGE, filesz=10 * PAGE, flags=RW),
            Segment(vaddr=cut, memsz=90 * PAGE, filesz=0, flags=RW),
            whole(STACK),
        ],
        left_out=[LeftOut(cut, LARGE.end, BEYOND.format(22 * PAGE))],
        truncated=True,
    )


def test_with_room_for_one_page_it_is_of_the_stack() -> None:
    result = plan(limit=1)
    top = STACK.end - 2 * PAGE
    assert [s for s in result.segments if s.filesz] == [
        Segment(vaddr=top, memsz=PAGE, filesz=PAGE, flags=RW)
    ]
    assert sum(part.end - part.start for part in result.left_out) == 111 * PAGE
    assert result.truncated


def test_no_room_at_all_leaves_everything_out() -> None:
    result = plan(limit=0)
    assert [s for s in result.segments if s.filesz] == []
    assert sum(part.end - part.start for part in result.left_out) == 112 * PAGE


def test_what_policy_excludes_is_named_and_is_no_truncation() -> None:
    result = plan(choice=MemoryChoice(exclude=("stack",)))
    assert result == Plan(
        segments=[whole(SMALL), whole(LARGE), whole(STACK, 0)],
        left_out=[LeftOut(STACK.start, STACK.end, "excluded by policy")],
    )


def test_what_is_only_in_a_file_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN two parts of the large mapping that are only in its file
    one = (LARGE.start + PAGE, LARGE.start + 4 * PAGE)
    two = (LARGE.start + 90 * PAGE, LARGE.end)
    memory = Memory(one, two, unknown=[one, two])
    lost = [LeftOut(*one, FILE_ONLY), LeftOut(*two, FILE_ONLY)]

    def part(start: int, end: int, filesz: int) -> Segment:
        return Segment(vaddr=start, memsz=end - start, filesz=filesz, flags=RW)

    # THEN debuggers see that the core has nothing there
    assert plan(memory=memory) == Plan(
        segments=[
            whole(SMALL),
            part(LARGE.start, one[0], PAGE),
            part(*one, 0),
            part(one[1], two[0], 86 * PAGE),
            part(*two, 0),
            whole(STACK),
        ],
        left_out=lost,
    )
    # AND where there are too many such parts, the small ones are named only
    monkeypatch.setattr(planning, "MAX_PARTS", 1)
    assert plan(memory=memory) == Plan(
        segments=[
            whole(SMALL),
            part(LARGE.start, two[0], 90 * PAGE),
            part(*two, 0),
            whole(STACK),
        ],
        left_out=lost,
    )


def test_stacks_are_carved_out() -> None:
    top = STACK.end - 2 * PAGE
    assert plan(Capture.STACKS) == Plan(
        segments=[
            whole(SMALL, 0),
            whole(LARGE, 0),
            Segment(vaddr=STACK.start, memsz=6 * PAGE, filesz=0, flags=RW),
            Segment(vaddr=top, memsz=2 * PAGE, filesz=2 * PAGE, flags=RW),
        ],
        left_out=[],
    )
    limited = plan(Capture.STACKS, limit=1)
    assert [s.filesz for s in limited.segments] == [0, 0, 0, PAGE, 0]
    assert limited.truncated


def test_threads_take_no_memory_whatever_the_limit() -> None:
    nothing = Plan(segments=[whole(m, 0) for m in (SMALL, LARGE, STACK)], left_out=[])
    assert plan(Capture.THREADS) == plan(Capture.THREADS, limit=0) == nothing


def test_every_plan_covers_every_mapping() -> None:
    for limit in range(0, 113, 7):
        segments = plan(limit=limit).segments
        ranges = [(s.vaddr, s.vaddr + s.memsz) for s in segments]
        for one in (SMALL, LARGE, STACK):
            inside = [r for r in ranges if one.start <= r[0] < one.end]
            assert inside[0][0] == one.start
            assert inside[-1][1] == one.end
            assert all(a[1] == b[0] for a, b in itertools.pairwise(inside))
        held = sum(s.filesz for s in segments)
        assert held <= limit * PAGE
