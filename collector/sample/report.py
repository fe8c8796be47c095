"""What sampling has found, as one document: `coreward sample --json` prints it. Pure values.

Times are seconds; `offset_s` from the first sample of the process. Frames and stacks are kept
once: a thread names its stack, a stack its frames, by their numbers in the process's lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from collector.introspect.types import ProcessIdentity
from collector.model import Frame
from collector.sample.group import Inner, Place, places
from collector.sample.types import Sample, ThreadSample

VERSION = 1


class ThreadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thread in one sample."""

    tid: int
    name: str
    state: str
    cpu_s: float | None  # on a CPU since the sample before; None: its first
    switches: int | None  # context switches since the sample before; None: its first, or not known
    syscall: str | None
    wait_channel: str | None
    stack: int | None


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    offset_s: float
    took_s: float  # of ours, not of the process
    threads: list[ThreadRow]
    lost: dict[str, str]


class PlaceThreadRow(msgspec.Struct, frozen=True, kw_only=True):
    tid: int
    name: str
    samples: int
    of: int
    longest_s: float
    cpu_s: float


class PlaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where threads were; see collector.sample.group."""

    state: str
    waits_in: str | None
    samples: int
    longest_s: float
    cpu_s: float
    threads: list[PlaceThreadRow]
    frames: list[int]
    inner: list[Inner]


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """All samples of one process, and what they come to."""

    process: ProcessIdentity
    ended: bool  # while it was sampled
    elapsed_s: float  # from the first sample to the last
    cpu_s: float  # of all threads, between samples
    places: list[PlaceRow]
    samples: list[SampleRow]
    stacks: list[list[int]]
    frames: list[Frame]
    lost: dict[str, str]


class SampleReport(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    every_s: float
    interrupted: bool
    processes: list[ProcessReport]


class _Numbers:
    """Frames, each once."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._known: dict[Frame, int] = {}

    def of(self, frames: Sequence[Frame]) -> list[int]:
        for frame in frames:
            if frame not in self._known:
                self._known[frame] = len(self.frames)
                self.frames.append(frame)
        return [self._known[frame] for frame in frames]


def report_of(
    identity: ProcessIdentity,
    samples: Sequence[Sample],
    frames: Mapping[bytes, tuple[Frame, ...]],
    *,
    ended: bool,
    lost: Mapping[str, str],
) -> ProcessReport:
    """The report of one process; `frames` by the keys of stacks. At least one sample."""
    numbers = _Numbers()
    keys = {key: number for number, key in enumerate(frames)}
    stacks = [numbers.of(frames[key]) for key in keys]
    found = places(samples, frames)
    first = samples[0].time_ns
    return ProcessReport(
        process=identity,
        ended=ended,
        elapsed_s=_seconds(samples[-1].time_ns - first),
        cpu_s=_seconds(sum(place.cpu_ns for place in found)),
        places=[_place(place, numbers) for place in found],
        samples=list(_rows(samples, keys)),
        stacks=stacks,
        frames=numbers.frames,
        lost=dict(lost),
    )


def _seconds(ns: int) -> float:
    return round(ns / 1e9, 6)


def _place(place: Place, numbers: _Numbers) -> PlaceRow:
    return PlaceRow(
        state=place.state,
        waits_in=place.waits_in,
        samples=place.samples,
        longest_s=_seconds(place.longest_ns),
        cpu_s=_seconds(place.cpu_ns),
        threads=[
            PlaceThreadRow(
                tid=thread.tid,
                name=thread.name,
                samples=thread.samples,
                of=thread.of,
                longest_s=_seconds(thread.longest_ns),
                cpu_s=_seconds(thread.cpu_ns),
            )
            for thread in place.threads
        ],
        frames=numbers.of(place.frames),
        inner=list(place.inner),
    )


def _rows(samples: Sequence[Sample], keys: Mapping[bytes, int]) -> list[SampleRow]:
    rows = []
    before: dict[tuple[int, int], ThreadSample] = {}
    for sample in samples:
        threads = [_row(t, before.get((t.tid, t.start_ns)), keys) for t in sample.threads]
        before = {(t.tid, t.start_ns): t for t in sample.threads}
        rows.append(
            SampleRow(
                offset_s=_seconds(sample.time_ns - samples[0].time_ns),
                took_s=_seconds(sample.took_ns),
                threads=threads,
                lost=sample.lost,
            )
        )
    return rows


def _row(now: ThreadSample, before: ThreadSample | None, keys: Mapping[bytes, int]) -> ThreadRow:
    switches = None
    if before is not None and before.switches is not None and now.switches is not None:
        switches = now.switches - before.switches
    return ThreadRow(
        tid=now.tid,
        name=now.name,
        state=now.state,
        cpu_s=None if before is None else _seconds(max(now.runtime_ns - before.runtime_ns, 0)),
        switches=switches,
        syscall=now.syscall,
        wait_channel=now.wait_channel,
        stack=keys.get(now.stack) if now.stack is not None else None,
    )
