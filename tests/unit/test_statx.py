"""What the kernel has of a file, as stat(2) tells it where nobody keeps readers waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collector.linux.statx import link_count, version_of


def test_a_version_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"x" * 5000)
    os.utime(file, ns=(7, 1_234_567_890_123_456_789))
    # GIVEN a file THEN its version is what stat(2) says, also by a descriptor that reads nothing
    found = file.stat()
    fd = os.open(file, os.O_PATH)
    for path in (str(file), f"/proc/self/fd/{fd}"):
        assert version_of(path) == (found.st_ino, 5000, 1_234_567_890_123_456_789)
        assert link_count(path) == 1
    os.close(fd)
    # WHEN another build takes its place THEN it is another version
    before = version_of(str(file))
    file.unlink()
    file.write_bytes(b"y" * 5000)
    assert version_of(str(file)) != before


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        version_of(str(tmp_path / "none"))
