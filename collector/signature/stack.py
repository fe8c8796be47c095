"""What a signature takes from the frames of a thread: a few functions to read, a hash of all.

The walk begins at the innermost frame. It begins anew below what ends a program (*sentinels*),
skips what is *irrelevant*, keeps *prefixes* and goes on, and ends at the first function of the
program's own. Pure; it runs where the frames are made, in a process that can be lost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from collector.model import Frame
from collector.signature.digest import digest
from collector.signature.names import normal
from collector.signature.rules import MOST_FRAMES, Rules
from collector.signature.types import StackKey

_HANDLER = "<signal handler called>"
_HANDLER_DEPTH = 24  # frames of a handler that ends the program, from its abort() on
_LONGEST_CYCLE = 12  # functions
_DEEP = 12  # times that a cycle comes again, in a stack that recursion has used up
_BUILD_ID = 8  # digits that tell builds apart
_LONGEST = 200  # characters of one name


class _Place(NamedTuple):
    name: str  # of the function, or "+": it has none
    module: str  # file name of the object
    text: str  # as a key shows it
    library: bool  # its source file is a library's


def stack_key(frames: Sequence[Frame], rules: Rules) -> StackKey | None:
    """None: there are no frames."""
    places = list(_places(frames, rules))
    if not places:
        return None
    kept, cycle = _relevant(places, rules), _cycle(places, rules)
    return StackKey(
        frames=tuple(kept[:MOST_FRAMES]),
        cycle=cycle,
        fine=_hash(cycle or _folded([f"{place.module}!{place.text}" for place in places])),
        rules=rules.id,
    )


def names(frames: Sequence[Frame], rules: Rules) -> list[str]:
    """All functions that say something of a bug, innermost first, each repetition once."""
    told = (place.text for place in _places(frames, rules) if not _is_noise(place, rules))
    return list(_folded(list(told)))


def _places(frames: Sequence[Frame], rules: Rules) -> Iterator[_Place]:
    for number, frame in enumerate(frames):
        if frame.language is not None:
            yield _interpreted(frame, rules)
            continue
        if frame.function is None and frame.module is None:
            continue  # nowhere: a wild call goes to another address each time
        # an inlined function is in the object of the function that it was inlined into
        outer = next((f for f in frames[number : number + 64] if f.module is not None), None)
        module = "" if outer is None else _file_name(outer.module or "")
        module = module.removesuffix(" (deleted)")[:_LONGEST]
        library = rules.is_library_source(frame.file)
        if frame.function is None:
            yield _Place("+", module, _unnamed(frame, module), library)
            continue
        name = rules.alias(normal(frame.function))[:_LONGEST]
        text = f"{module}!{name}" if rules.common.has(name, module) and module else name
        yield _Place(name, module, text, library)


def _interpreted(frame: Frame, rules: Rules) -> _Place:
    """A function of an interpreter: its names have brackets of their own, and its file is what an
    object is for others."""
    name = (frame.function or "+")[:_LONGEST]
    module = _file_name(frame.file or "")[:_LONGEST]
    text = f"{module}!{name}" if rules.common.has(name, module) and module else name
    return _Place(name, module, text, rules.is_library_source(frame.file))


@functools.lru_cache(maxsize=64)
def _file_name(path: str) -> str:
    return PurePosixPath(path).name


def _unnamed(frame: Frame, module: str) -> str:
    """A place without symbols: the same in each run of one build."""
    build = f"+{frame.build_id[:_BUILD_ID]}" if frame.build_id else ""
    offset = "" if frame.module_offset is None else f"+{frame.module_offset:#x}"
    return f"{module or '?'}{build}{offset}"


def _is_noise(place: _Place, rules: Rules) -> bool:
    return (
        place.library
        or rules.irrelevant.has(place.name, place.module)
        or rules.sentinels.has(place.name, place.module)
    )


def _relevant(places: Sequence[_Place], rules: Rules) -> list[str]:
    """The functions of the readable key."""
    kept: list[str] = []
    own = 0
    library: str | None = None  # the module of the last prefix
    for place in places[_start(places, rules) :]:
        name, module = place.name, place.module
        if rules.sentinels.has(name, module) and not own:
            kept, library = [], None
        elif _is_noise(place, rules):
            continue
        elif rules.prefixes.has(name, module):
            if own:
                continue
            if library == module and kept:
                kept.pop()  # of one library: what the program called, not what that consists of
            library = module
            kept.append(place.text)
        elif not kept or kept[-1] != place.text:
            kept.append(place.text)
            own += 1
            if own == rules.own_frames:
                break
    # a stack of nothing but a runtime: its innermost frame is all that there is
    return kept or [place.text for place in places[:1]]


def _start(places: Sequence[_Place], rules: Rules) -> int:
    """Where the walk begins. A handler that ends the program is not the bug: what it interrupted
    is."""
    first = next((p for p in places if not _is_entry(p, rules)), None)
    if first is None or not rules.sentinels.has(first.name, first.module):
        return 0
    for number, place in enumerate(places[:_HANDLER_DEPTH]):
        if place.name == _HANDLER:
            return number + 1
    return 0


def _is_entry(place: _Place, rules: Rules) -> bool:
    """A frame in the C library without a name may be one of abort's."""
    return place.name == "+" and rules.irrelevant.has("+", place.module)


def _cycle(places: Sequence[_Place], rules: Rules) -> tuple[str, ...]:
    """The functions of a recursion that fills the stack, beginning with the first by alphabet.

    What is above it is whatever happened to need the last bytes of the stack.
    """
    texts = [place.text for place in places if not _is_noise(place, rules)]
    for start in range(min(len(texts), 2 * _LONGEST_CYCLE)):
        for length in range(1, _LONGEST_CYCLE + 1):
            times = _times(texts, start, length)
            if times >= _DEEP:
                return _rotated(tuple(texts[start : start + length]))
    return ()


def _times(texts: Sequence[str], start: int, length: int) -> int:
    """How often the `length` texts at `start` follow each other."""
    first = texts[start : start + length]
    times = 0
    while len(first) == length and texts[start : start + length] == first:
        times += 1
        start += length
    return times


def _rotated(cycle: tuple[str, ...]) -> tuple[str, ...]:
    return min(cycle[number:] + cycle[:number] for number in range(len(cycle)))


def _folded(texts: list[str]) -> tuple[str, ...]:
    """Each recursion once, however deep it was."""
    folded: list[str] = []
    at = 0
    while at < len(texts):
        for length in range(1, _LONGEST_CYCLE + 1):
            times = _times(texts, at, length)
            if times > 1:
                folded.extend(texts[at : at + length])
                at += times * length
                break
        else:
            folded.append(texts[at])
            at += 1
    return tuple(folded)


def _hash(texts: Sequence[str]) -> str:
    return digest("\n".join(texts), 8)
