"""Memory of a process as it may be written: what a policy redacts of it is zero.

Four things are zeroed: whole mappings, which are not even read; arguments and variables where the
kernel has put them; the same values wherever they are; and what regular expressions find. Memory is
read in pieces, so each is looked through with what lies before and behind it: a match is found over
the border of two pieces, pages or mappings if it is no longer than REACH. What cannot be looked
through, because it is too much or there is no time, is zeroed as well.

Registers of 8 bytes stay; vector registers, through which copies of texts go, do not.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

import msgspec

from collector.arch.x86_64 import PAGE
from collector.capture.image import mapping_at
from collector.capture.memory import Memory
from collector.capture.process import ProcText
from collector.capture.select import is_chosen
from collector.elfcore.types import CorewardNote, Mapping, ProcessImage, Thread
from collector.linux.procfs import parse_stat
from collector.policy.types import MappingKind
from collector.ranges import Range, inside, outside, union
from collector.redact.rules import OutOfTime, Rules, fitting
from collector.redact.types import ARGUMENTS, ENVIRONMENT, MAPPINGS, REACH, Redact
from collector.redact.words import argument_spans, environment_spans

_MOST_BLOCK = 8 << 20  # bytes of arguments or environment; the kernel takes 6 MiB
_MOST_TOLD = 64 << 10  # bytes of values that are looked for in the record's texts
_CONTROL, _HEADER = (0, 32), (416, 576)  # of an XSAVE area what is no register
_KINDS = {str(kind) for kind in MappingKind}

Read = Callable[[int, int], bytes]


class Redactor:
    """What is to be redacted of one process. For one thread at a time."""

    def __init__(
        self, redact: Redact, mappings: Sequence[Mapping], text: ProcText, read: Read
    ) -> None:
        """read: looks into its memory, as `Memory.read`."""
        self.redact = redact
        self.mappings = mappings
        chosen = [m for m in mappings if _is_redacted(m, redact.mappings)]
        self.zeroed = union((m.start, m.end) for m in chosen)
        self.zeroed_mappings = [(m.start, m.end) for m in chosen]
        self.spans: list[tuple[int, int, str]] = []  # start, end, rule; rising
        self.secrets: dict[str, list[bytes]] = {}
        if redact.texts:
            self._find_words(text.stat, read)
        self._reach = [*accumulate((span[1] for span in self.spans), max)]  # how far the first do
        self.rules = Rules(redact, self.secrets)
        self._cmdline = text.cmdline

    def _find_words(self, stat: bytes, read: Read) -> None:
        try:
            at = parse_stat(stat)
        except (ValueError, IndexError):  # it is not told where they are
            return
        blocks = (
            (ARGUMENTS, at.arg_start, at.arg_end, argument_spans, self.redact.arguments),
            (ENVIRONMENT, at.env_start, at.env_end, environment_spans, self.redact.environment),
        )
        for rule, start, end, find, globs in blocks:
            if not globs or not 0 < start < end:
                continue
            data = read(start, min(end - start, _MOST_BLOCK))
            values = self.secrets.setdefault(rule, [])
            for low, high in find(data, globs):
                self.spans.append((start + low, start + high, rule))
                values.append(data[low:high])
            if start + len(data) < end:  # nobody knows what is there
                self.spans.append((start + len(data), end, rule))
        self.spans.sort()

    def spans_in(self, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """Those that reach into [start, end)."""
        index = bisect.bisect_right(self._reach, start)
        while index < len(self.spans) and self.spans[index][0] < end:
            if self.spans[index][1] > start:
                yield self.spans[index]
            index += 1

    def view(self, memory: Memory, fill: bytes = b"\0") -> RedactedMemory:
        """That memory as one core of the process may have it. fill: the byte that is put in the
        place of texts; mappings are zero."""
        return RedactedMemory(memory, self, fill)

    def image(self, image: ProcessImage) -> ProcessImage:
        """What the notes may say."""
        if not self.redact.texts:
            return image
        psinfo = image.psinfo
        if psinfo is not None:
            psinfo = msgspec.structs.replace(psinfo, psargs=self._psargs(len(psinfo.psargs)))
        threads = [self._thread(thread) for thread in image.threads]
        return msgspec.structs.replace(image, threads=threads, psinfo=psinfo)

    def _psargs(self, size: int) -> bytes:
        block = bytearray(self._cmdline)
        for start, end in argument_spans(self._cmdline, self.redact.arguments):
            block[start:end] = bytes(end - start)
        self.clear(block, Counter())
        return bytes(block[:size]).replace(b"\0", b" ")

    def _thread(self, thread: Thread) -> Thread:
        name = bytearray(thread.name.encode("utf-8", "surrogateescape"))
        self.clear(name, Counter())
        return msgspec.structs.replace(
            thread,
            name=name.replace(b"\0", b"").decode("utf-8", "surrogateescape"),
            xstate=_without_vectors(thread.xstate),
            fpregs=_without_vectors(thread.fpregs),
        )

    def clear(
        self,
        data: bytearray,
        counts: Counter[str],
        within: Range | None = None,
        fill: bytes = b"\0",
    ) -> bool:
        """Make zero, or another byte, what the rules find in some bytes; False: they could not be
        looked through, and are zero. within: only of hits that begin there the number is counted.
        """
        low, high = within or (0, len(data))
        try:
            for hit in self.rules.hits(bytes(data)):
                filled = fill * (hit.end - hit.start)
                if data[hit.start : hit.end] == filled:
                    continue  # another rule has found it
                data[hit.start : hit.end] = filled
                counts[hit.rule] += low <= hit.start < high
        except OutOfTime:
            data[:] = bytes(len(data))
            return False
        return True

    def told(self) -> dict[str, list[str]]:
        """Values that are to be hidden in texts about the process, as many as there is room for;
        each byte is a character."""
        room = _MOST_TOLD
        found: dict[str, list[str]] = {}
        for rule, values in self.secrets.items():
            chosen, _ = fitting(values, room)
            room -= sum(len(value) for value in chosen)
            if chosen:
                found[rule] = [value.decode("latin-1") for value in chosen]
        return found


class RedactedMemory:
    """A `MemorySource` over `Memory`, for writing one core; it counts what it redacts."""

    def __init__(self, memory: Memory, redactor: Redactor, fill: bytes = b"\0") -> None:
        self._memory, self._redactor, self._fill = memory, redactor, fill
        self._starts = [m.start for m in redactor.mappings]
        self._found: Counter[str] = Counter()
        self.unseen = 0  # bytes that were zeroed because nobody looked through them

    def ranges(self, start: int, end: int) -> Iterator[Range]:
        """Populated ranges of [start, end), which must lie inside one mapping."""
        zeroed = self._redactor.zeroed
        if not zeroed:
            yield from self._memory.ranges(start, end)
            return
        for low, high in self._memory.ranges(start, end):
            yield from outside([(low, high)], zeroed)

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read from `address` on, without what is redacted."""
        got = self._memory.read_into(address, buffer)
        self._redact(address, buffer[:got])
        return got

    def pieces(self, given: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Memory that was copied before, as it may be written: of no zeroed mapping."""
        found = []
        for address, data in given:
            for low, high in outside([(address, address + len(data))], self._redactor.zeroed):
                part = bytearray(data[low - address : high - address])
                with memoryview(part) as view:
                    self._redact(low, view)
                found.append((low, bytes(part)))
        return found

    @property
    def why_unseen(self) -> str:
        """What is said of these bytes, and of values that are not looked for; else empty."""
        most, unwatched = self._redactor.redact.time, self._redactor.rules.unwatched
        parts = []
        if self.unseen:
            parts.append(
                f"{self.unseen} bytes were not looked through in time, and are zero ({most:g} s)"
            )
        if unwatched:
            parts.append(f"{unwatched} values are too much to be looked for elsewhere in memory")
        return "; ".join(parts)

    def counts(self, held: Iterable[Range]) -> dict[str, int]:
        """How often each rule was found, by its name. held: what the core has of the process."""
        parts = union(held)
        zeroed = [m for m in self._redactor.zeroed_mappings if inside([m], parts)]
        return {**self._found, **({MAPPINGS: len(zeroed)} if zeroed else {})}

    def note(self, note: CorewardNote, held: Iterable[Range]) -> CorewardNote:
        """The core's own note, with these numbers."""
        return msgspec.structs.replace(note, redacted=dict(self.counts(held)))

    def _redact(self, address: int, view: memoryview) -> None:
        end = address + len(view)
        for low, high in inside([(address, end)], self._redactor.zeroed):
            view[low - address : high - address] = bytes(high - low)
        if not self._redactor.redact.texts or not len(view):
            return
        before, behind = self._before(address), self._behind(end)
        data = bytearray(b"".join((before, view, behind)))
        base, own = address - len(before), (len(before), len(before) + len(view))
        for start, stop, rule in self._redactor.spans_in(base, base + len(data)):
            low, high = max(start, base), min(stop, base + len(data))
            data[low - base : high - base] = self._fill * (high - low)
            self._found[rule] += address <= start < end
        if not self._redactor.clear(data, self._found, own, self._fill):
            self.unseen += len(view)
        view[:] = data[own[0] : own[1]]

    def _before(self, address: int) -> bytes:
        """What lies before an address without a gap, REACH bytes at most."""
        parts: list[bytes] = []
        floor = max(address - REACH, 0) & -PAGE
        while address > floor:
            mapping = self._mapping(address - 1)
            if mapping is None:
                break
            low = max(mapping.start, floor)
            found = list(self._memory.ranges(low, address + PAGE - 1 & -PAGE))
            if not found or found[-1][1] < address:
                break
            start = max(low, found[-1][0])
            data = self._memory.read(start, address - start)
            if len(data) < address - start:
                break
            parts.append(data)
            address = start
            if start > low:
                break
        return b"".join(reversed(parts))

    def _behind(self, address: int) -> bytes:
        """What lies behind an address without a gap, REACH bytes at most."""
        parts: list[bytes] = []
        ceiling = address + REACH + PAGE - 1 & -PAGE
        while address < ceiling:
            mapping = self._mapping(address)
            if mapping is None:
                break
            high = min(mapping.end, ceiling)
            first = next(iter(self._memory.ranges(address & -PAGE, high)), None)
            if first is None or first[0] > address:
                break
            stop = min(first[1], high)
            data = self._memory.read(address, stop - address)
            parts.append(data)
            address += len(data)
            if address < high:
                break
        return b"".join(parts)

    def _mapping(self, address: int) -> Mapping | None:
        """That holds an address; None: nothing that is written of it."""
        mapping = mapping_at(self._redactor.mappings, self._starts, address)
        if mapping is None or mapping.special:
            return None
        return None if inside([(address, address + 1)], self._redactor.zeroed) else mapping


def _is_redacted(mapping: Mapping, names: Sequence[str]) -> bool:
    if not names:
        return False
    if mapping.unnamed and not set(names) <= _KINDS:
        return True  # its path was not told, and may be one of them
    return is_chosen(mapping, names)


def _without_vectors(area: bytes | None) -> bytes | None:
    """An XSAVE or FXSAVE area with all x87 and vector registers zero, and its header as it was."""
    if area is None:
        return None
    kept = bytearray(len(area))
    for start, end in (_CONTROL, _HEADER):
        kept[start:end] = area[start:end]
    return bytes(kept)
