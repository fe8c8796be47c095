"""The last samples of one process in bounded memory.

Most threads sleep, and one that sleeps looks the same in every sample: it and its stack are kept
once. So a thousand sleeping threads cost hardly more for sixty samples than for one. Bytes are
counted, not measured: what an object takes in Python is estimated generously. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

import msgspec

from collector.sample.types import KeptStack, Sample, ThreadSample

_SAMPLE = 512  # bytes of a sample without its threads
_REFERENCE = 8  # of a thread that is in the sample before as well
_THREAD = 400
_STACK = 1200  # registers, key, and counting


class SampleRing:
    """At most `max_samples` samples and about `max_bytes` of memory; the oldest go first."""

    def __init__(self, max_samples: int, max_bytes: int) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise ValueError("a ring holds at least one sample")
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._samples: deque[Sample] = deque()
        self._stacks: dict[bytes, KeptStack] = {}
        self._uses: Counter[bytes] = Counter()  # by distinct thread samples
        self.bytes = 0
        self.dropped = 0  # samples that memory was too small for

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def samples(self) -> list[Sample]:
        """Oldest first."""
        return list(self._samples)

    def stack(self, key: bytes) -> KeptStack:
        """The stack of a thread sample that is in the ring. KeyError if it is not."""
        return self._stacks[key]

    @property
    def stacks(self) -> Mapping[bytes, KeptStack]:
        return self._stacks

    def add(self, sample: Sample, stacks: Mapping[bytes, KeptStack]) -> None:
        """Append a sample; `stacks` has those that its threads name.

        A sample that alone is larger than the ring is kept without its stacks, or not at all.
        """
        if self._size_alone(sample, stacks) > self._max_bytes:
            sample = _without_stacks(sample)
            if self._size_alone(sample, stacks) > self._max_bytes:
                self.dropped += 1
                return
        last = {t.tid: t for t in self._samples[-1].threads} if self._samples else {}
        threads = tuple(_same(last.get(t.tid), t) for t in sample.threads)
        self._samples.append(msgspec.structs.replace(sample, threads=threads))
        self.bytes += _SAMPLE + _REFERENCE * len(threads)
        for thread in threads:
            if last.get(thread.tid) is not thread:
                self._count(thread, stacks)
        while len(self._samples) > self._max_samples:
            self._drop_oldest()
        while self.bytes > self._max_bytes:
            self._drop_oldest()
            self.dropped += 1

    @staticmethod
    def _size_alone(sample: Sample, stacks: Mapping[bytes, KeptStack]) -> int:
        keys = {thread.stack for thread in sample.threads} - {None}
        return (
            _SAMPLE
            + (_REFERENCE + _THREAD) * len(sample.threads)
            + sum(_STACK + len(stacks[key].data) for key in keys if key is not None)
        )

    def _count(self, thread: ThreadSample, stacks: Mapping[bytes, KeptStack]) -> None:
        self.bytes += _THREAD
        key = thread.stack
        if key is None:
            return
        self._uses[key] += 1
        if key not in self._stacks:
            self._stacks[key] = stacks[key]
            self.bytes += _STACK + len(stacks[key].data)

    def _drop_oldest(self) -> None:
        gone = self._samples.popleft()
        kept = {id(thread) for thread in self._samples[0].threads} if self._samples else set()
        self.bytes -= _SAMPLE + _REFERENCE * len(gone.threads)
        for thread in gone.threads:
            if id(thread) not in kept:
                self._forget(thread)

    def _forget(self, thread: ThreadSample) -> None:
        self.bytes -= _THREAD
        key = thread.stack
        if key is None:
            return
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self.bytes -= _STACK + len(self._stacks.pop(key).data)


def _same(before: ThreadSample | None, now: ThreadSample) -> ThreadSample:
    return before if before is not None and before == now else now


def _without_stacks(sample: Sample) -> Sample:
    return msgspec.structs.replace(
        sample,
        threads=tuple(msgspec.structs.replace(t, stack=None) for t in sample.threads),
        lost={**sample.lost, "stacks": "there are more than the memory allowed for samples"},
    )
