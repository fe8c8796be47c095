"""Files that are memory: they are there with and without the right to mount."""

from __future__ import annotations

import os

import pytest

from collector.linux import fresh


def check(fd: int) -> None:
    try:
        assert os.fstat(fd).st_size == 0
        assert os.pwrite(fd, b"last", 5 << 20) == 4
        assert os.pread(fd, 8, (5 << 20) - 4) == b"\0\0\0\0last"
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_what_this_machine_has() -> None:
    check(fresh.memory_file())


def test_a_memfd_where_nothing_may_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, *arguments: int | bytes | None) -> int:
        raise PermissionError

    monkeypatch.setattr(fresh, "_call", refuse)
    check(fresh.memory_file())
