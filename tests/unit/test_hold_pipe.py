"""The lines and the spool of the pipe helper."""

from __future__ import annotations

import pytest

from collector.errors import HoldError
from collector.handoff.pipe import PipeNote, parse_line


def test_a_line_says_who_is_dying() -> None:
    assert parse_line(b"812 815 11 1000 1001 1 1700000000 3\n") == PipeNote(
        812, 815, 11, 1000, 1001, 1, 1700000000, 3, None
    )
    assert parse_line(b"812 815 6 0 0 2 1700000000 - 4711\n") == PipeNote(
        812, 815, 6, 0, 0, 2, 1700000000, None, 4711
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"1 2 3\n",
        b"1 2 3 4 5 6 7 8 9 10\n",
        b"- 2 3 4 5 6 7 -\n",
        b"1 2 3 4 5 6 7 -8\n",
        b"1 2 3 4 5 6 7 \xd9\xa1\n",
        b"1 2 3 4 5 6 7 8\n1 2 3 4 5 6 7 8\n",
        b"1 2 3 4 5 6 7 " + b"9" * 400 + b"\n",
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(HoldError, match="not a line of the pipe helper"):
        parse_line(line)
