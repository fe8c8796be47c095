"""The goroutines of a Go program, for people."""

from __future__ import annotations

from collections.abc import Sequence

from collector.cli import render
from collector.model import Frame, GoroutineGroup, Goroutines

_RUNTIME = ("runtime.", "internal/", "runtime/")
_GROUPS = 5  # that `info` shows


def goroutines_in_short(found: Goroutines) -> list[str]:
    """How many are in which state, and where most of them are: a line each."""
    lines = [f"  {_states(found)}"]
    lines += [f"  {one.count:5}  {_state(one)}" for one in found.groups[:_GROUPS]]
    if len(found.groups) > _GROUPS:
        lines.append(f"         and {len(found.groups) - _GROUPS} more places")
    return [render.clean(line) for line in lines]


def goroutine_lines(found: Goroutines, screen: render.Screen) -> list[str]:
    """All groups, with the frames of one of each."""
    lines = [screen.bold(render.clean(f"Goroutines: {_states(found)}"))]
    for one in found.groups:
        ids = ", ".join(str(number) for number in one.ids)
        more = f" and {one.count - len(one.ids)} more" if one.count > len(one.ids) else ""
        what = "Goroutine" if one.count == 1 else f"{one.count} goroutines"
        lines += ["", screen.bold(render.clean(f"{what} ({ids}{more}): {_state(one)}"))]
        lines += render.frame_lines(one.frames, screen)
    return lines


def _states(found: Goroutines) -> str:
    states = sorted(found.states.items(), key=lambda pair: (-pair[1], pair[0]))
    told = ", ".join(f"{count} {state}" for state, count in states) or "none that can be read"
    lost = f" ({found.lost})" if found.lost is not None else ""
    return f"{told}, {found.version}{lost}"


def _state(one: GoroutineGroup) -> str:
    return f"{one.state}: {_place(one.frames)}" if one.frames else f"{one.state}, see its thread"


def _place(frames: Sequence[Frame]) -> str:
    """The program's own function, and by which of the runtime's it waits."""
    names = [frame.function for frame in frames if frame.function]
    own = next((n for n, name in enumerate(names) if not name.startswith(_RUNTIME)), None)
    if own is None:
        return names[0] if names else "no names"
    return " <- ".join(names[max(own - 1, 0) : own + 1])
