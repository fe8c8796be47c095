"""The disk's reserve, which several writers keep together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from collector.capture import space
from collector.capture.space import SpaceWatch, unseen
from collector.policy.types import Codec, Compress

MIB = 1 << 20
PLAIN = Compress(codec=Codec.NONE)


class Disk:
    """A file system and the files on it, in bytes; a descriptor is an index of `files`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, files: int = 1) -> None:
        self.free, self.files = free, [0] * files
        monkeypatch.setattr(space, "free_bytes", lambda _: self.free)
        monkeypatch.setattr(space, "_written", lambda fd: self.files[fd])

    def write(self, size: int, fd: int = 0) -> None:
        self.files[fd] += size
        self.free -= size


def never(written: int, free: int) -> bool:
    return False


def written(disk: Disk, watches: list[SpaceWatch]) -> None:
    """Write to all files at a time, 4 MiB each, until every watch has ended its core."""
    going = list(enumerate(watches))
    while going:
        # all look before one of them writes: the worst case
        going = [(fd, watch) for fd, watch in going if not watch()]
        for fd, _ in going:
            disk.write(4 * MIB, fd)


@pytest.mark.parametrize("writers", [1, 2, 3, 16])
def test_all_writers_together_leave_the_reserve(
    writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 1000 * MIB, writers)
    watches = [SpaceWatch(fd, 100 * MIB, unseen(PLAIN, writers), never) for fd in range(writers)]
    written(disk, watches)
    assert 100 * MIB <= disk.free <= 100 * MIB + unseen(PLAIN, writers)


def test_what_a_writer_has_in_hand_counts() -> None:
    assert unseen(PLAIN, 1) == 8 * MIB
    assert unseen(Compress(codec=Codec.ZSTD, workers=3), 2) == 2 * 28 * MIB


def test_it_says_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 1050 * MIB)
    watch = SpaceWatch(0, 1 << 30, unseen(PLAIN, 3), never)
    assert not watch() and watch.why == ""
    disk.write(8 * MIB)
    assert watch()
    assert watch.why == (
        "the core ends where the disk's reserve begins: 1042 MiB were free, store.min_free is "
        "1GiB, and what is being written may take 24MiB"
    )


def test_it_looks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 1 << 40)
    watch = SpaceWatch(0, MIB, 0, never)
    assert not watch()
    disk.free = 0
    disk.files[0] = 4 * MIB - 4096
    assert not watch()
    disk.files[0] = 4 * MIB
    assert watch()


def asked_by(make: Callable[[int], None], answers: bool) -> tuple[space.AskForRoom, list[object]]:
    asked: list[object] = []

    def ask(written: int, free: int) -> bool:
        asked.append((written, free))
        make(free)
        return answers

    return ask, asked


def test_where_others_give_room_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 20 * MIB)
    ask, asked = asked_by(lambda free: setattr(disk, "free", free), True)
    watch = SpaceWatch(0, 10 * MIB, 8 * MIB, ask)
    assert not watch() and asked == []
    disk.write(4 * MIB)
    assert not watch() and asked == [(4 * MIB, 18 * MIB)]
    disk.write(4 * MIB)
    assert not watch() and len(asked) == 2


def test_without_a_reserve_others_give_and_the_core_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Disk(monkeypatch, 0)
    ask, asked = asked_by(lambda free: None, False)
    assert not SpaceWatch(0, 0, 8 * MIB, ask)()
    assert asked == [(0, 8 * MIB)]
