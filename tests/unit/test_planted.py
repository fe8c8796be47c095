"""Where a core is written: nobody else's pipe, device or link receives it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.cli import copying, planted
from collector.cli.copying import new_file
from collector.errors import StoreError, UsageError


@pytest.fixture
def of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on all files belong to somebody else."""
    for module in (copying, planted):
        monkeypatch.setattr(module, "is_trusted", lambda uid: False)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that somebody waits at, with what he has read in `taken`."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path


def write(path: Path, *, replace: bool = True, others: bool = False) -> None:
    with new_file(path, replace=replace, others=others) as fd:
        os.write(fd, b"secret")


def read_by_somebody(pipe: Path, action: threading.Thread) -> bytes:
    action.start()
    with open(pipe, "rb") as reader:
        taken = reader.read()
    action.join()
    return taken


def test_a_pipe_of_ones_own_is_written_straight_through(pipe: Path) -> None:
    assert read_by_somebody(pipe, threading.Thread(target=write, args=(pipe,))) == b"secret"


def test_a_pipe_of_somebody_else_is_not_even_opened(pipe: Path, of_others: None) -> None:
    # WHEN a core is to go there, which would block for want of a reader
    # THEN it is refused, also through a link
    link = pipe.parent / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(UsageError, match="refused"):
            write(path)


def test_unless_it_is_asked_for(pipe: Path, of_others: None) -> None:
    writer = threading.Thread(target=write, args=(pipe,), kwargs={"others": True})
    assert read_by_somebody(pipe, writer) == b"secret"


def test_a_pipe_that_was_given_to_us() -> None:
    # GIVEN a pipe of whoever has started us, as `>(…)` of a shell makes it
    reader, writer = os.pipe()
    looked_at = os.open(f"/dev/fd/{writer}", os.O_PATH)
    try:
        assert planted.was_given(looked_at)
    finally:
        os.close(reader)
        os.close(writer)
    # THEN it is known only as long as it is open here
    assert not planted.was_given(looked_at)
    os.close(looked_at)


def test_a_device_of_somebody_else(of_others: None) -> None:
    with pytest.raises(UsageError, match="device of uid"):
        write(Path("/dev/full"))


def test_links_of_somebody_else_lead_nowhere(tmp_path: Path, of_others: None) -> None:
    # GIVEN links to a folder, to a file that is there and to one that is not
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("precious")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "there").symlink_to("real/file")
    (tmp_path / "dangling").symlink_to("real/new")
    for name in ("folder/core", "there", "dangling"):
        with pytest.raises(UsageError, match="leads over a link of uid"):
            write(tmp_path / name)
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]
    assert (tmp_path / "real" / "file").read_text() == "precious"


def test_ones_own_links(tmp_path: Path) -> None:
    # GIVEN the same, but one's own
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("precious")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "there").symlink_to("real/file")
    # THEN a folder is found through one
    write(tmp_path / "folder" / ".." / "folder" / "core", replace=False)
    assert (tmp_path / "real" / "core").read_bytes() == b"secret"
    # AND a link in the place of the file is replaced, not followed
    write(tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"secret"
    assert (tmp_path / "real" / "file").read_text() == "precious"


def test_links_in_a_circle_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        write(tmp_path / "a" / "core")
    with pytest.raises(StoreError, match="No such file or directory"):
        write(tmp_path / "missing" / "core")


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "core", replace=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "l").symlink_to(".")
    write(tmp_path / "l" / "core")
    for path in (tmp_path / "missing" / "core", tmp_path):
        with pytest.raises((StoreError, UsageError)):
            write(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
