"""Marks of copies that snapshots make: who can make them, and how long they stay."""

from __future__ import annotations

import os
from pathlib import Path

from collector import copies
from collector.copies import is_copy, mark
from collector.model import ProcessKey

KEY = ProcessKey(812, 4_711_230_000_000)


def test_a_mark_is_of_one_process(tmp_path: Path) -> None:
    place = tmp_path / "copies"
    assert not is_copy(KEY, place)
    mark(KEY, place)
    # THEN it is known, also by a key that is more exact than /proc
    assert is_copy(KEY, place)
    assert is_copy(ProcessKey(KEY.pid, KEY.start_ns + 123), place)
    # AND whoever has its pid later is somebody else
    assert not is_copy(ProcessKey(KEY.pid, KEY.start_ns + 10**9), place)
    assert not is_copy(ProcessKey(KEY.pid + 1, KEY.start_ns), place)
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_others_marks_nothing(tmp_path: Path) -> None:
    # GIVEN a folder that is a link, as somebody might plant it
    place = tmp_path / "copies"
    mark(KEY, tmp_path / "real")
    place.symlink_to(tmp_path / "real")
    assert not is_copy(KEY, place)
    # AND marks that others can write
    (tmp_path / "real" / f"{KEY.pid}-{KEY.start_ns // copies.TICK_NS}").chmod(0o666)
    assert not is_copy(KEY, tmp_path / "real")


def test_without_a_place_nothing_happens(tmp_path: Path) -> None:
    mark(KEY, tmp_path / "missing" / "copies")
    assert not is_copy(KEY, tmp_path / "missing" / "copies")


def test_old_marks_go(tmp_path: Path) -> None:
    # GIVEN a mark of last week, and more than are kept
    old = ProcessKey(1, KEY.start_ns)
    mark(old, tmp_path)
    (file,) = tmp_path.iterdir()
    os.utime(file, (1, 1))
    for pid in range(2, 2 + copies._MOST):
        (tmp_path / f"{pid}-1").touch()
    # WHEN another one is made THEN they make room
    mark(KEY, tmp_path)
    assert is_copy(KEY, tmp_path) and not is_copy(old, tmp_path)
    assert len(list(tmp_path.iterdir())) == copies._MOST
