"""`coreward heap`, and the part of `info` that shows the top of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import PurePath

import msgspec

from collector.cli import render
from collector.cli.choice import id_argument, json_argument, reading
from collector.cli.cores import core_of, warn_incomplete, what_there_is
from collector.errors import NotFound
from collector.model import Allocator, Frame, HeapArena, HeapProfile, HeapSite, Record
from collector.store.store import Store

_TOP = 5  # sites, sizes and arenas that `info` shows
_CALLERS = 3  # of a site in `info`
_NOTES = (
    "memory",
    "rate",
    "sizes",
    "caches",
    "sites",
)  # of what is there, but not exact, or not whole
_NO_ALLOCATOR = "no allocator that is known was found: Go's, glibc's, jemalloc, tcmalloc, mimalloc"
_SECONDS = 10.0  # for the allocator's lists; a person waits


class HeapVerb:
    """Shows what the memory of a process was used for, as its allocator tells by its core: for Go
    which functions allocated what is in use, for glibc how full its arenas are, and of what."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        with reading(args.store) as store:
            record = store.get(args.id)
            profiles = _profiles(store, record)
        if args.json:
            render.print_json(msgspec.to_builtins(profiles))
            return 0
        print("\n\n".join("\n".join(_whole(profile)) for profile in profiles))
        return 0


def _profiles(store: Store, record: Record) -> list[HeapProfile]:
    """Those of the record, if nothing is missing of them; else from the core, with more time."""
    from collector.heap.run import heap_of_core  # noqa: PLC0415 (not for `info`)

    kept = record.heap or []
    whole = kept and not any(profile.lost for profile in kept)
    if whole or (kept and store.core_path(record) is None):
        return kept
    core = core_of(store, record)
    warn_incomplete(record)
    report = heap_of_core(core, seconds=_SECONDS)
    read = {profile.allocator for profile in report.profiles}
    # the program's file may have been within reach of the agent only
    profiles = [*report.profiles, *(one for one in kept if one.allocator not in read)]
    if not profiles:
        why = report.lost.get("heap", _NO_ALLOCATOR)
        raise NotFound(f"record {record.id} has no heap: {render.clean(why)}").advised(
            what_there_is(record)
        )
    if not kept:
        for part, why in sorted(report.lost.items()):
            print(f"coreward: lost: {render.clean(part)}: {render.clean(why)}", file=sys.stderr)
    return profiles


def top_lines(record: Record) -> list[str]:
    """The largest parts, for `info`; empty if nothing was read."""
    lines: list[str] = []
    for profile in record.heap or []:
        lines += [_heading(profile), *_tables(profile, _TOP)]
        lines += [_site(one, _CALLERS) for one in profile.sites[:_TOP]]
        lines += _lost(profile)
    return [f"  {line}" for line in lines]


def _whole(profile: HeapProfile) -> list[str]:
    lines = [_heading(profile), *_tables(profile, len(profile.arenas) + len(profile.sizes))]
    for site in profile.sites:
        lines += ["", _amount(site), *(f"      {_frame(frame)}" for frame in site.frames)]
    left = (profile.site_count or 0) - len(profile.sites)
    if left > 0:
        lines += ["", f"  and {left} more"]
    return lines + _lost(profile)


def _heading(profile: HeapProfile) -> str:
    name = profile.version or profile.allocator.value
    if profile.allocator is not Allocator.GO and profile.version is not None:
        name = f"{profile.allocator.value} {profile.version}"
    if profile.in_use is None or profile.objects is None:
        return render.clean(f"{name}: how much is in use is not known")
    bound = "at most " if "caches" in profile.lost else ""
    if profile.lost.keys() & {"sites", "memory"}:
        bound = "at least "
    said = f"{name}: {bound}{render.size(profile.in_use)} in use, {profile.objects:,} pieces"
    if profile.rate is not None:
        said += f", estimated from samples (one for {render.size(profile.rate)})"
    return render.clean(said)


def _tables(profile: HeapProfile, most: int) -> list[str]:
    lines = []
    if profile.arenas:
        shown = profile.arenas[:most]
        rows = [("arena", "from the kernel", "in use", "free", "top"), *map(_arena_row, shown)]
        lines += _aligned(rows)
        lines += [f"  {one.address:#x}: {render.clean(one.lost)}" for one in shown if one.lost]
        left = (profile.arena_count or 0) - len(shown)
        lines += [f"  and {left} more"] if left > 0 else []
    if profile.mapped_count:
        lines.append(
            f"  {render.size(profile.mapped)} in {profile.mapped_count} pieces with mappings of "
            "their own"
        )
    if profile.sizes:
        rows = [("in use", "pieces", "of"), *_size_rows(profile, most)]
        lines += _aligned(rows)
    return lines


def _arena_row(arena: HeapArena) -> tuple[str, ...]:
    sizes = (arena.system, arena.in_use, arena.free, arena.top)
    return f"{arena.address:#x}", *map(render.size, sizes)


def _size_rows(profile: HeapProfile, most: int) -> list[tuple[str, ...]]:
    return [
        (render.size(one.size * one.count), f"{one.count:,}", f"{one.size:,} B")
        for one in profile.sizes[:most]
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    right = range(len(rows[0]))
    return ["  " + render.GAP.join(row) for row in render.columns(rows, right)]


def _amount(site: HeapSite) -> str:
    return f"  {render.size(site.in_use):>10}  {site.objects:>9,} objects"


def _site(site: HeapSite, callers: int) -> str:
    way = " < ".join(_frame(frame) for frame in site.frames[:callers])
    return f"  {render.size(site.in_use):>10}  {way}"


def _frame(frame: Frame) -> str:
    where = "" if frame.file is None else f" ({PurePath(frame.file).name}:{frame.line})"
    return render.clean(f"{frame.function or hex(frame.pc)}{where}")


def _lost(profile: HeapProfile) -> list[str]:
    notes = [part for part in _NOTES if part in profile.lost]
    lines = [f"  {render.clean(profile.lost[part])}" for part in notes]
    return lines + [
        f"  no {part.replace('_', ' ')}: {render.clean(why)}"
        for part, why in sorted(profile.lost.items())
        if part not in notes
    ]
