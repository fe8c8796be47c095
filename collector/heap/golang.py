"""The memory profile of a Go program: its runtime samples one allocation for so many bytes.

It keeps, of each stack that allocated, how often objects of one size were taken and given back, in
a list that begins at `runtime.mbuckets` (src/runtime/mprof.go of Go; its layout has been the same
since 1.9, but that newer versions leave out the bytes, which follow from the size). In use is all
that no collection has given back until the moment of the core; `go tool pprof`, which asks a live
process, shows it as of its last collection.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from collector.explain.elf_file import ElfFile
from collector.explain.pclntab import LineTable
from collector.heap.memory import Memory, NotInCore, OutOfBudget
from collector.heap.moduledata import ModuleData, find_buckets, find_module
from collector.heap.objects import Data, Object, Objects, OpenObject
from collector.model import Allocator, Frame, HeapProfile, HeapSite

_BUILD_INFO = ".go.buildinfo"
_BUILD_ID = ".note.go.buildid"
_TABLES = (".gopclntab", ".data.rel.ro.gopclntab")
_BUCKETS, _RATE = "runtime.mbuckets", "runtime.MemProfileRate"
_USUAL_RATE = 512 << 10  # of MemProfileRate
_ASSUMED = "the rate is taken to be the usual one: without symbols (-ldflags=-s) it is not known"
_HEAD = 6  # words of struct bucket: next, allnext, typ, hash, size, nstk
_MEM_PROFILE = 1  # bucketType
_MAX_STACK = 1024 + 6  # maxProfStackDepth, maxSkip
_CYCLES = 4  # memRecordCycle of struct memRecord: active, future[3]
_MAX_BUCKETS = 1 << 20
_MAX_STACK_WORDS = 1 << 23  # of all stacks that are kept together
_MOST = 1 << 42  # bytes that objects of one size and stack can be in use of
_SHOWN_SITES = 20
_SHOWN_FRAMES = 32
_OWN = ("runtime.", "internal/runtime/")  # of whose frames pprof hides the innermost


class _Bucket(NamedTuple):
    """One stack and one size of objects, and how many were taken and given back in each cycle.

    wide: each cycle has the bytes of both as well.
    """

    size: int
    stack: tuple[int, ...]
    record: tuple[int, ...]

    def is_wide(self) -> bool:
        cycles = (self.record[at : at + 4] for at in range(0, 4 * _CYCLES, 4))
        return all(
            (taken * self.size, given * self.size) == (taken_bytes, given_bytes)
            for taken, given, taken_bytes, given_bytes in cycles
        )

    def in_use(self, *, wide: bool) -> int:
        """Sampled objects that were taken, and not given back."""
        step = 4 if wide else 2
        taken = sum(self.record[0 : step * _CYCLES : step])
        return taken - sum(self.record[1 : step * _CYCLES : step])


def read_go(memory: Memory, objects: Objects) -> HeapProfile | None:
    """What the runtime's profile says; None: it is no Go program.

    OSError or ValueError if the program's file cannot be used: then nobody knows.
    """
    main = objects.main
    if main is None:
        raise ValueError("the core does not tell which it is")
    with objects.open(main) as opened:
        if not opened.elf.sections.get(_BUILD_INFO):
            return None
        version = _version(opened.elf)
        try:
            _verify(memory, opened)
            return _profile(memory, main, opened, objects.data(main), version)
        except NotInCore as error:
            why = f"the runtime's {error}"
        except OutOfBudget:
            why = "there was no time to read it"
        except ValueError as error:
            why = str(error)
        return HeapProfile(allocator=Allocator.GO, version=version, lost={"profile": why})


def _profile(
    memory: Memory, main: Object, opened: OpenObject, data: Data, version: str | None
) -> HeapProfile:
    """ValueError says why there is none."""
    code = _Code(memory, main, opened, data, version)
    head, rate = _sampled(memory, opened, code.module)
    lost = {} if rate is not None else {"rate": _ASSUMED}
    rate = _USUAL_RATE if rate is None else rate
    sites = sampled_sites(memory, head, rate, lost)
    most = sorted(sites.items(), key=lambda pair: -pair[1][1])[:_SHOWN_SITES]
    shown = [
        HeapSite(in_use=round(size), objects=round(count), frames=code.frames(stack))
        for stack, (count, size) in most
    ]
    if code.lost:
        lost["frames"] = code.lost
    return HeapProfile(
        allocator=Allocator.GO,
        version=version,
        in_use=round(sum(size for _, size in sites.values())),
        objects=round(sum(count for count, _ in sites.values())),
        rate=rate,
        sites=shown,
        site_count=len(sites),
        lost=lost,
    )


def _sampled(
    memory: Memory, opened: OpenObject, module: ModuleData | None
) -> tuple[int, int | None]:
    """The head of the list of buckets, and for how many bytes there is one sample; None: unknown.

    ValueError if nothing is sampled, or it cannot be found.
    """
    symbols = {name: at + opened.bias for name, at in opened.elf.symbols((_BUCKETS, _RATE)).items()}
    if symbols.keys() >= {_BUCKETS, _RATE}:
        rate = memory.word(symbols[_RATE])
        if rate == 0:
            raise ValueError("it is not sampled: MemProfileRate is 0, as in programs without pprof")
        if rate >= 1 << 63:
            raise ValueError("its MemProfileRate makes no sense")
        return symbols[_BUCKETS], rate
    head = None if module is None else find_buckets(memory, module)
    if head is None:
        raise ValueError("no samples were found; its file has no symbols (-ldflags=-s)")
    return head, None


def _verify(memory: Memory, opened: OpenObject) -> None:
    """Programs of Go have a build-id of Go's own, the only one that older ones have."""
    if opened.verified:
        return
    note = opened.elf.sections.get(_BUILD_ID)
    try:
        if note is None or not note.size:
            raise ValueError("its file has no build-id")
        if memory.block(note.address + opened.bias, note.size) != opened.elf.section(_BUILD_ID):
            raise ValueError("its file is another one than was mapped (build-id)")
    except NotInCore as error:
        raise ValueError("its build-id is not in the core, so its file proves nothing") from error


def _version(elf: ElfFile) -> str | None:
    """`go1.19.8`: src/debug/buildinfo of Go, the form since 1.18."""
    data = elf.section(_BUILD_INFO)[:256]
    if not data.startswith(b"\xff Go buildinf:") or len(data) < 34 or not data[15] & 2:
        return None
    return data[33 : 33 + min(data[32], 127)].decode("utf-8", "replace")


def _minor(version: str | None) -> int | None:
    """19 of `go1.19.8`, None of others, as development versions."""
    found = re.match(r"go1\.(\d{1,3})\b", version or "")
    return None if found is None else int(found.group(1))


# ---- what was sampled


def sampled_sites(
    memory: Memory, head: int, rate: int, lost: dict[str, str]
) -> dict[tuple[int, ...], tuple[float, float]]:
    """Stack -> objects and bytes in use, as many as the samples stand for.

    head: the address of `mbuckets`. rate: bytes for which there is one sample. lost: what is
    missing is named there. ValueError, NotInCore or OutOfBudget if nothing can be read.
    """
    buckets = []
    try:
        for bucket in _buckets(memory, head):
            buckets.append(bucket)
    except (NotInCore, OutOfBudget, ValueError) as error:
        if not buckets:
            raise
        why = str(error) or "there was no time for all"
        lost["sites"] = f"only {len(buckets)} stacks were read: {why}"
    wide = all(bucket.is_wide() for bucket in buckets)
    sites: dict[tuple[int, ...], tuple[float, float]] = {}
    for bucket in buckets:
        scale = _scale(bucket.size, rate)
        count = bucket.in_use(wide=wide) * scale
        if not 0 <= count * max(bucket.size, 1) < _MOST:
            lost["sites"] = "the numbers of some stacks make no sense"
        elif count:
            before = sites.get(bucket.stack, (0.0, 0.0))
            sites[bucket.stack] = before[0] + count, before[1] + count * bucket.size
    return sites


def _buckets(memory: Memory, head: int) -> Iterator[_Bucket]:
    seen: set[int] = set()
    words = 0
    at = memory.word(head)
    while at:
        if at in seen or len(seen) == _MAX_BUCKETS:
            raise ValueError("their list has no end")
        seen.add(at)
        _, following, kind, _, size, depth = memory.words(at, _HEAD)
        if kind != _MEM_PROFILE or not 0 < depth <= _MAX_STACK:
            raise ValueError("their list is damaged")
        words += depth
        if words > _MAX_STACK_WORDS:
            raise ValueError("they are too many")
        stack = memory.words(at + 8 * _HEAD, depth)
        yield _Bucket(size, stack, _record(memory, at + 8 * (_HEAD + depth)))
        at = following


def _record(memory: Memory, at: int) -> tuple[int, ...]:
    """As long as the longer form is; behind the shorter one there may be nothing."""
    try:
        return memory.words(at, 4 * _CYCLES)
    except NotInCore:
        return memory.words(at, 2 * _CYCLES) + (0,) * 2 * _CYCLES


def _scale(size: int, rate: int) -> float:
    """What one sample of this size stands for: scaleHeapSample, src/runtime/pprof/protomem.go."""
    if size == 0 or rate <= 1:
        return 1.0
    return -1 / math.expm1(-size / rate)


# ---- where


class _Code:
    """The program's code: names of return addresses, by its own table of lines.

    module: what its linker told of it; None: see `lost`.
    """

    def __init__(
        self, memory: Memory, main: Object, opened: OpenObject, data: Data, version: str | None
    ) -> None:
        self._path = main.file.path
        self._table: LineTable | None = None
        self.module: ModuleData | None = None
        self.lost: str | None = None
        elf = opened.elf
        try:
            name = next((one for one in _TABLES if one in elf.sections), _TABLES[0])
            self._table = LineTable(elf.section(name))
            at = elf.sections[name].address + opened.bias
            minor = _minor(version)
            self.module = find_module(memory, data, at, self._table.names, minor)
            if self.module is None:
                raise ValueError("where its code begins is not known")
            inlined = self.module.inlined
            self._table.place(
                self.module.text[0],
                None if inlined is None else inlined - opened.bias,
                elf.at,
            )
            if inlined is None:
                self.lost = f"inlined functions of {version or 'an unknown Go'} are not named"
        except (ValueError, struct.error, IndexError) as error:
            self._table = None
            self.lost = f"its table of lines cannot be read: {error}"

    def frames(self, stack: tuple[int, ...]) -> list[Frame]:
        """Innermost first, without the runtime's own that are innermost, as pprof shows them."""
        frames: list[Frame] = []
        for number, pc in enumerate(stack):
            following = stack[number + 1] if number + 1 < len(stack) else 0
            frames += self._frames(pc, following)
        frames = [frame for frame in frames if frame.function != "runtime.goexit"] or frames
        own = 0
        while own < len(frames) and (frames[own].function or "").startswith(_OWN):
            own += 1
        return frames[own if own < len(frames) else 0 :][:_SHOWN_FRAMES]

    def _frames(self, pc: int, following: int) -> list[Frame]:
        places = []
        if self._table is not None:
            try:
                places = self._table.places(pc, following)
            except (ValueError, struct.error, IndexError) as error:
                self.lost = f"its table of lines is damaged: {error}"
        if not places:
            return [Frame(pc=pc)]
        return [
            Frame(
                pc=pc,
                function=place.function,
                file=place.file,
                line=place.line,
                module=self._path,
                inline=place.inline,
            )
            for place in places
        ]
