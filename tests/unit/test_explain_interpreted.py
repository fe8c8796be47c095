"""Functions of Python between the native frames that run them."""

from __future__ import annotations

import types
from typing import Any

import msgspec
import pytest

from collector.arch.x86_64 import FS_BASE
from collector.cli.threads import with_record
from collector.explain.fold import folded
from collector.explain.interpreted import Interpreted
from collector.explain.python_frames import Call, Run
from collector.explain.types import ThreadFrames
from collector.model import Frame
from tests.unit.test_explain_reason import record

LOOP, THREAD = "_PyEval_EvalFrameDefault", 0x7000
INNER, MIDDLE, OUTER = (
    Call(name, "/srv/app.py", line) for name, line in zip("abc", (1, 2, 3), strict=True)
)
RUNS = [Run((INNER, MIDDLE)), Run((OUTER,))]


def native(*names: str) -> list[Frame]:
    return [Frame(pc=n, function=name, module="/usr/bin/python3") for n, name in enumerate(names)]


def interpreted(runs: list[Run], why: str | None = None) -> Interpreted:
    core: Any = types.SimpleNamespace(notes=types.SimpleNamespace(files=None), auxv=None)
    found = Interpreted(core, lambda *_: b"")
    told: Any = types.SimpleNamespace(runs=lambda id: (runs if id == THREAD else [], why))
    found._python = told
    return found


REGISTERS = [THREAD if number == FS_BASE else 0 for number in range(27)]


def shown(frames: list[Frame]) -> list[tuple[int, str | None, str | None]]:
    return [(frame.pc, frame.function, frame.language) for frame in frames]


def test_they_stand_before_the_frame_that_runs_them() -> None:
    # GIVEN two calls of the interpreter, one in a part that the compiler has split off
    frames = native("f", LOOP + ".cold", "g", LOOP, "_start")
    # WHEN the functions are added
    found, lost = interpreted(RUNS).added(REGISTERS, frames)
    # THEN each run is at its place
    assert (shown(found), lost) == (
        [
            *((0, "f", None), (1, "a", "python"), (1, "b", "python"), (1, LOOP + ".cold", None)),
            *((2, "g", None), (3, "c", "python"), (3, LOOP, None), (4, "_start", None)),
        ],
        None,
    )
    assert (found[1].file, found[1].line, found[1].module) == ("/srv/app.py", 1, None)


@pytest.mark.parametrize(
    ("frames", "runs", "why", "lost"),
    [
        (native("f", LOOP, "_start"), RUNS, None, "2 calls of its interpreter, the stack 1"),
        (native("f", LOOP), RUNS, None, None),  # the stack is cut
        (native("f", LOOP, LOOP, "_start"), RUNS[:1], "is missing", "those of Python: is missing"),
        (native("f", "_start"), RUNS, None, None),
    ],
)
def test_what_does_not_fit_is_said(
    frames: list[Frame], runs: list[Run], why: str | None, lost: str | None
) -> None:
    found, told = interpreted(runs, why).added(REGISTERS, frames)
    assert [frame for frame in found if frame.language is None] == frames
    assert told is None if lost is None else lost in str(told)
    # AND the innermost run is where it belongs all the same
    if LOOP in [frame.function for frame in frames]:
        assert [frame.function for frame in found[:4]] == ["f", "a", "b", LOOP]


def test_threads_in_other_functions_are_not_folded() -> None:
    frames = native("wait", LOOP)
    one, _ = interpreted(RUNS[:1]).added(REGISTERS, frames)
    other, _ = interpreted(RUNS[1:]).added(REGISTERS, frames)
    threads = [ThreadFrames(tid=n, frames=f) for n, f in enumerate((one, other, one))]
    assert [[t.tid for t in group] for group in folded(threads)] == [[0, 2], [1]]


def test_a_core_without_them_has_those_of_the_record() -> None:
    # GIVEN a record with functions of Python in two frames of one place in the interpreter
    loop = Frame(pc=5, function=LOOP, module="/usr/bin/python3")
    one, two = (Frame(pc=5, function=name, language="python") for name in "ab")
    whole = [one, loop, two, loop]
    known = record(frames=whole, tid=1)
    # WHEN its core is read, that lacks them, and the name of the interpreter's function as well
    nameless = msgspec.structs.replace(loop, function=None)
    (thread,) = with_record([ThreadFrames(tid=1, frames=[nameless, nameless])], known)
    # THEN each is where it was
    assert thread.frames == whole
