"""Folders from which others could replace what root relies on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from collector.errors import HoldError
from collector.handoff.pipe import _trusted
from collector.handoff.trust import check_folders


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """A program three folders deep in a folder like /tmp."""
    tmp_path.chmod(0o1777)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for made in (folder, folder.parent):
        made.chmod(0o755)
    program = folder / "helper"
    program.touch(0o755)
    return program


def test_folders_of_ours_also_in_a_sticky_one(helper: Path) -> None:
    check_folders(helper)


@pytest.mark.parametrize("mode", [0o757, 0o775, 0o777])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_folder_that_others_may_write(
    helper: Path, mode: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a folder above it, near or far, that others may write
    folder = helper.parents[depth]
    folder.chmod(mode)
    _of_group(monkeypatch, 50)
    with pytest.raises(HoldError, match=rf"others could replace it: they may write {folder} "):
        check_folders(helper)
    # AND as the helper of a core_pattern it is refused, not only warned of
    if os.geteuid() == 0:
        helper.chmod(0o755)
        with pytest.raises(HoldError, match="others could replace it"):
            _trusted(helper)


def test_the_group_of_root_is_root(helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper.parent.chmod(0o775)
    _of_group(monkeypatch, 0)
    check_folders(helper)


def test_a_folder_of_another_user(helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def of_others(path: Path, **more: bool) -> os.stat_result:
        about = real(path, **more)
        return _changed(about, stat.ST_UID, 1000) if path == helper.parent else about

    monkeypatch.setattr(Path, "stat", of_others)
    with pytest.raises(HoldError, match=rf"uid 1000 could replace it: {helper.parent} is theirs"):
        check_folders(helper)


def _of_group(monkeypatch: pytest.MonkeyPatch, gid: int) -> None:
    real = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **more: _changed(real(path, **more), stat.ST_GID, gid)
    )


def _changed(about: os.stat_result, index: int, value: int) -> os.stat_result:
    fields = list(about)
    fields[index] = value
    return os.stat_result(fields)
