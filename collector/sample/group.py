"""From samples to places: which threads have been where, for how long. Pure.

A place is a state, what is waited for, and the functions on the stack; threads of equal places are
shown together. A running thread is somewhere else each time it is looked at: its samples are
joined by the callers that they all have in common, and what lies within is told by share.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from collector.model import Frame
from collector.sample.types import Sample, ThreadSample

_LEAST_COMMON = 2  # callers that make running samples one place
_INNER = 3  # functions inside of a running place that are named
_RANK_NS = 10_000_000  # less time on a CPU makes no difference in the order

# Where every thread of a C library begins.
_OUTERMOST = re.compile(
    r"_start|start_thread|_*clone3?|__libc_start_main(_impl|@.*)?|__libc_start_call_main"
)

Function = tuple[str | None, str | None, int]  # name, module, and the pc where there is no name


class PlaceThread(msgspec.Struct, frozen=True, kw_only=True):
    """A thread in a place."""

    tid: int
    name: str
    samples: int  # of its samples, how many are here
    of: int  # its samples in all
    longest_ns: int  # from the first to the last sample of its longest stay; see `places`
    cpu_ns: int  # time on a CPU that it came to while here


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    """What a running place was at: a function right inside of the common frames."""

    function: str
    samples: int


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where threads were."""

    state: str  # as in proc(5)
    waits_in: str | None  # system call, function of the kernel, or `call (function)`
    frames: tuple[Frame, ...]  # innermost first; of a running place those that all had in common
    inner: tuple[Inner, ...]
    threads: tuple[PlaceThread, ...]

    @property
    def samples(self) -> int:
        return sum(thread.samples for thread in self.threads)

    @property
    def longest_ns(self) -> int:
        return max(thread.longest_ns for thread in self.threads)

    @property
    def cpu_ns(self) -> int:
        return sum(thread.cpu_ns for thread in self.threads)


class _Spot(msgspec.Struct, frozen=True):
    """What makes two samples the same place."""

    state: str
    waits_in: str | None
    functions: tuple[Function, ...]


class _Visit(msgspec.Struct):
    """One thread in one sample."""

    time_ns: int
    thread: ThreadSample
    cpu_ns: int  # since the sample before
    spot: _Spot
    frames: tuple[Frame, ...]


def is_outermost(frame: Frame) -> bool:
    """Whether nothing but the beginning of the thread lies outside of this frame."""
    return frame.function is not None and _OUTERMOST.fullmatch(frame.function) is not None


def places(samples: Sequence[Sample], frames: Mapping[bytes, tuple[Frame, ...]]) -> list[Place]:
    """The places of one process, those with the most time on a CPU first, then by samples.

    A stay ends when the thread is elsewhere in the next sample. A sleeping thread's stay ends also
    when it has run in between, even if it came back: so a long one means that it really hangs
    there.
    """
    visits: dict[tuple[int, int], list[_Visit]] = defaultdict(list)
    for sample in samples:
        for thread in sample.threads:
            history = visits[thread.tid, thread.start_ns]
            before = history[-1].thread.runtime_ns if history else thread.runtime_ns
            found = frames.get(thread.stack, ()) if thread.stack is not None else ()
            history.append(
                _Visit(
                    sample.time_ns,
                    thread,
                    max(thread.runtime_ns - before, 0),
                    _spot(thread, found),
                    found,
                )
            )
    inner: dict[_Spot, Counter[str]] = defaultdict(Counter)
    for history in visits.values():
        _join_running(history, inner)
    return _collect(visits.values(), inner)


def _spot(thread: ThreadSample, frames: Sequence[Frame]) -> _Spot:
    functions = tuple(_function(frame) for frame in frames)
    waits_in = thread.syscall or thread.wait_channel
    if thread.syscall and thread.wait_channel:
        waits_in = f"{thread.syscall} ({thread.wait_channel})"
    return _Spot(thread.state, waits_in, functions)


def _function(frame: Frame) -> Function:
    return frame.function, frame.module, 0 if frame.function else frame.pc


def _join_running(history: list[_Visit], inner: dict[_Spot, Counter[str]]) -> None:
    """Give the running samples of one thread the place that they have in common, if any."""
    running = [visit for visit in history if visit.thread.state == "R" and visit.frames]
    if len({visit.spot for visit in running}) < 2:
        return
    common = _common_callers([visit.spot.functions for visit in running])
    if common < _LEAST_COMMON:
        return
    for visit in running:
        inside = len(visit.frames) - common
        name = _name(visit.frames[inside - 1]) if inside else "(itself)"
        visit.frames = visit.frames[inside:]
        visit.spot = _Spot("R", None, visit.spot.functions[inside:])
        inner[visit.spot][name] += 1


def _common_callers(stacks: Sequence[tuple[Function, ...]]) -> int:
    """How many of the outermost functions all stacks share."""
    count = 0
    for level in zip(*(reversed(stack) for stack in stacks), strict=False):
        if len(set(level)) > 1:
            break
        count += 1
    return count


def _name(frame: Frame) -> str:
    """The function, or where the code belongs that has no name."""
    if frame.function:
        return frame.function
    return f"?? [{frame.module.rsplit('/', 1)[-1]}]" if frame.module else "??"


def _collect(
    histories: Iterable[list[_Visit]],
    inner: Mapping[_Spot, Counter[str]],
) -> list[Place]:
    members: dict[_Spot, list[PlaceThread]] = defaultdict(list)
    shown: dict[_Spot, tuple[Frame, ...]] = {}
    for history in histories:
        for spot in dict.fromkeys(visit.spot for visit in history):
            here = [visit for visit in history if visit.spot == spot]
            shown.setdefault(spot, here[0].frames)
            last = history[-1].thread
            members[spot].append(
                PlaceThread(
                    tid=last.tid,
                    name=last.name,
                    samples=len(here),
                    of=len(history),
                    longest_ns=_longest(history, spot),
                    cpu_ns=sum(visit.cpu_ns for visit in here),
                )
            )
    found = [
        Place(
            state=spot.state,
            waits_in=spot.waits_in,
            frames=shown[spot],
            inner=tuple(
                Inner(function=name, samples=count)
                for name, count in inner.get(spot, Counter()).most_common(_INNER)
            ),
            threads=tuple(threads),
        )
        for spot, threads in members.items()
    ]
    return sorted(found, key=lambda place: (-(place.cpu_ns // _RANK_NS), -place.samples))


def _longest(history: Sequence[_Visit], spot: _Spot) -> int:
    longest = 0
    first: _Visit | None = None
    for visit in history:
        if visit.spot != spot:
            first = None
            continue
        if first is None or (spot.state != "R" and _has_run(first, visit)):
            first = visit
        longest = max(longest, visit.time_ns - first.time_ns)
    return longest


def _has_run(before: _Visit, after: _Visit) -> bool:
    if before.thread.switches is None:
        return before.thread.runtime_ns != after.thread.runtime_ns
    return before.thread.switches != after.thread.switches
