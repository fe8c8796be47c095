"""The backtraces of all threads, for people: equal ones once, with what the record knows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import msgspec

from collector.cli import render
from collector.explain.fold import folded, in_short
from collector.explain.types import FrameValues, Pointer, ThreadFrames
from collector.model import Frame, Record

_NAMED = 8  # threads of a group that are named
_PLACES = 6  # that are shown of all threads


def with_record(
    threads: Sequence[ThreadFrames], record: Record, kept: Sequence[ThreadFrames] = ()
) -> list[ThreadFrames]:
    """The threads, the one that died first, with what only the record and its file `kept` know.

    They were made while the process's files were at hand. These may be gone, or in a container.
    """
    whole = {thread.tid: _physical(thread.frames) for thread in kept}
    own = _physical(record.frames or [])
    known = {group[-1].pc: group for groups in (*whole.values(), own) for group in groups}
    found = []
    first = 0
    for number, thread in enumerate(threads):
        groups, name = _physical(thread.frames), thread.name
        other = whole.get(thread.tid, [])
        if died(record, thread, number):
            first = number
            name = name or record.thread_name
            other = own or other
        if not _begins(groups, other):  # it goes another way, or ends before
            groups = other
        better = [
            _better(group, known, other[place] if place < len(other) else [])
            for place, group in enumerate(groups)
        ]
        found.append(
            msgspec.structs.replace(
                thread,
                name=name,
                frames=[frame for group in better for frame in group],
                values=_moved(thread, better),
            )
        )
    return [*found[first : first + 1], *found[:first], *found[first + 1 :]]


def _moved(thread: ThreadFrames, groups: Sequence[Sequence[Frame]]) -> list[FrameValues]:
    """The variables of a thread, by the numbers of its frames in these groups."""
    places: dict[int, tuple[int, int, int]] = {}  # frame -> its group, place from the end, pc
    for number, group in enumerate(_physical(thread.frames)):
        for place in range(len(group)):
            places[len(places)] = number, len(group) - place, group[-1].pc
    starts = list(itertools.accumulate(map(len, groups), initial=0))
    moved = []
    for one in thread.values:
        number, place, pc = places.get(one.frame, (len(groups), 0, 0))
        if number < len(groups) and groups[number][-1].pc == pc and place <= len(groups[number]):
            moved.append(msgspec.structs.replace(one, frame=starts[number + 1] - place))
    return moved


def died(record: Record, thread: ThreadFrames, number: int) -> bool:
    """Whether this thread of a core, the number in it given, is the one that died.

    In a pid namespace of its own a process's core has other ids, but that thread is the first.
    """
    if record.snapshot is not None:
        return False
    return number == 0 if record.ns_pid not in (None, record.pid) else thread.tid == record.tid


def _physical(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames, those of inlined and interpreted functions together with that which has them."""
    groups: list[list[Frame]] = []
    for frame in frames:
        if groups and (groups[-1][-1].inline or groups[-1][-1].language):
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


def _better(
    group: list[Frame], known: dict[int, list[Frame]], same: Sequence[Frame]
) -> list[Frame]:
    """The frames of one place as the record has them, where it knows more.

    known: of any thread. same: of this frame; only there are the functions of an interpreter the
    same ones.
    """
    run = _interpreted(group) or _interpreted(same)
    other = known.get(group[-1].pc)
    if other is not None and _score(other[-1]) > _score(group[-1]):
        group = other
    return [*run, *(frame for frame in group if frame.language is None)]


def _interpreted(group: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in group if frame.language is not None]


def _score(frame: Frame) -> tuple[bool, bool, bool, bool]:
    return (
        frame.function is not None,
        frame.line is not None,
        frame.module is not None,
        frame.build_id is not None,
    )


def _begins(whole: Sequence[list[Frame]], part: Sequence[list[Frame]]) -> bool:
    """Whether a backtrace is the beginning of another one."""
    return [group[-1].pc for group in whole[: len(part)]] == [group[-1].pc for group in part]


def text(
    threads: Sequence[ThreadFrames], record: Record, screen: render.Screen | None = None
) -> str:
    """All of them, equal ones once; registers of the first one. threads: as of `with_record`."""
    groups = folded(threads[1:])
    screen = screen or render.Screen()
    first = _one(threads[0], screen, died(record, threads[0], 0))
    first += [render.clean(f"  {_register(one)}") for one in threads[0].registers]
    parts = [first]
    parts += [
        _one(group[0], screen) if len(group) == 1 else _many(group, screen) for group in groups
    ]
    parts.append(render.nameless_lines(frame for thread in threads for frame in thread.frames))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def others_in_short(kept: Sequence[ThreadFrames], record: Record) -> list[str]:
    """Where the threads that did not die were: a line for each place, most threads first."""
    others = [one for number, one in enumerate(kept) if not died(record, one, number)]
    counted = Counter(in_short(one.frames) for one in others)
    shown = counted.most_common(_PLACES)
    lines = [render.clean(f"  {count:5}  {place}") for place, count in shown]
    if len(counted) > len(shown):
        lines.append(f"         and {len(counted) - len(shown)} more places")
    return [*lines, f"         coreward bt {record.id} --all"] if lines else []


def _name(thread: ThreadFrames) -> str:
    return f" `{thread.name}`" if thread.name else ""


def _one(thread: ThreadFrames, screen: render.Screen, first: bool = False) -> list[str]:
    heading = f"Thread {thread.tid}{_name(thread)}{', which died' if first else ''}:"
    colour = screen.red if first else screen.bold
    return [colour(render.clean(heading)), *_frames(thread, screen)]


def _many(group: Sequence[ThreadFrames], screen: render.Screen) -> list[str]:
    names = ", ".join(f"{thread.tid}{_name(thread)}" for thread in group[:_NAMED])
    more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
    heading = f"{len(group)} threads: {in_short(group[0].frames)}"
    named = render.clean(f"({names}{more})")
    return [screen.bold(render.clean(heading)), named, *_frames(group[0], screen)]


def _frames(thread: ThreadFrames, screen: render.Screen) -> list[str]:
    values = {one.frame: one.variables for one in thread.values}
    lines = []
    for number, line in enumerate(render.frame_lines(thread.frames, screen)):
        lines.append(line)
        for variable in values.get(number, ()):
            kind = f" ({variable.type})" if variable.type else ""
            shown = variable.value if variable.lost is None else f"not known: {variable.lost}"
            lines.append(render.clean(f"        {variable.name}{kind} = {shown}"))
    if thread.lost is not None:
        lines.append(f"({render.clean(thread.lost)})")
    return lines


def _register(one: Pointer) -> str:
    parts = [f"{one.register.ljust(4)}{one.value:#018x}"]
    parts += [part for part in (one.mapping, one.file, one.symbol, one.string) if part]
    if one.before or one.after:
        parts.append(f"[{one.before or ''} | {one.after or ''}]")
    return "  ".join(parts)
