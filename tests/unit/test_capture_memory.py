"""What is read of the files behind mappings, tried on mappings of our own."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector.arch.x86_64 import PAGE
from collector.capture import mapped
from collector.capture.image import decode_maps
from collector.capture.memory import ProcessMemory
from collector.elfcore.types import Mapping
from collector.linux import filesystems
from collector.linux.filesystems import open_cached, own_devices

SIZE = 1 << 40  # of the file; a hole but for two pages
DATA = (40 << 30, 700 << 30)
_NORESERVE = 0x4000  # MAP_NORESERVE of <linux/mman.h>


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in DATA:
            file.seek(at)
            file.write(b"data".ljust(PAGE, b"."))
    return path


@contextmanager
def mapping_of(path: Path) -> Iterator[tuple[Mapping, mmap.mmap]]:
    """A private mapping of all of it, of which page 5 was written."""
    with path.open("rb") as file:
        area = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE | _NORESERVE)
    area[5 * PAGE] = 1
    own = Path("/proc/self/maps").read_bytes()
    yield next(m for m in decode_maps(own) if (m.path or "").startswith(str(path))), area
    area.close()


@contextmanager
def memory_of(found: Mapping, *, root: bool = True) -> Iterator[ProcessMemory]:
    fds = [
        os.open("/proc/self/mem", os.O_RDONLY),
        os.open("/proc/self/pagemap", os.O_RDONLY),
        os.open("/", os.O_PATH),
    ]
    yield ProcessMemory(fds[0], fds[1], [found], {}, fds[2] if root else None)
    for fd in fds:
        os.close(fd)


def block(path: Path) -> int:
    """A file system has data in blocks of its own size."""
    return max(PAGE, os.statvfs(path).f_bsize)


def test_holes_of_a_file_are_not_read(sparse: Path) -> None:
    # GIVEN a private mapping of a file with 1 TiB of holes
    with mapping_of(sparse) as (found, _), memory_of(found) as memory:
        # WHEN asked what is to be read of it
        ranges = list(memory.ranges(found.start, found.end))
        # THEN that is the page that was written and the two with data, and nothing else is unknown
        for at in (5 * PAGE, *DATA):
            place = found.start + at
            assert any(a <= place and place + PAGE <= b for a, b in ranges)
        assert sum(b - a for a, b in ranges) <= PAGE + 2 * block(sparse) + (1 << 20)
        assert memory.unknown(found.start, found.end) == []
        assert memory.read(found.start + DATA[0], 4) == b"data"


@pytest.mark.parametrize("why", ["unlinked", "replaced", "no root", "foreign"])
def test_what_cannot_be_known_is_said(
    sparse: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN such a mapping whose file is not to be found, or not to be asked
    with mapping_of(sparse) as (found, _):
        if why in ("unlinked", "replaced"):
            sparse.unlink()
        if why == "replaced":
            sparse.write_bytes(b"another")
        if why == "foreign":
            monkeypatch.setattr(mapped, "own_devices", frozenset)
        with memory_of(found, root=why != "no root") as memory:
            # THEN only what is in memory is read, and all else is unknown
            ranges = list(memory.ranges(found.start, found.end))
            assert any(a <= found.start + 5 * PAGE < b for a, b in ranges)
            known = sum(b - a for a, b in ranges)
            assert known < 1 << 20
            unknown = memory.unknown(found.start, found.end)
            assert sum(b - a for a, b in unknown) == SIZE - known
            assert all(b <= c or d <= a for a, b in ranges for c, d in unknown)


def test_a_small_mapping_is_read_whole_unless_its_file_is_foreign(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mapping_of(sparse) as (found, _):
        end = found.start + mapped.SMALL
        with memory_of(found) as memory:
            assert list(memory.ranges(found.start, end)) == [(found.start, end)]
        monkeypatch.setattr(mapped, "own_devices", frozenset)
        with memory_of(found) as memory:
            assert sum(b - a for a, b in memory.ranges(found.start, end)) < end - found.start
            # AND a look-up touches only what is in memory
            assert memory.read(found.start + 5 * PAGE, 1) == b"\1"
            assert memory.read(found.start + DATA[1], 4) == b""


def test_a_file_is_opened_only_if_it_is_the_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    about = path.stat()
    device = os.major(about.st_dev) << 20 | os.minor(about.st_dev)
    assert device in own_devices()
    root = os.open("/", os.O_PATH)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    try:
        fd = open_cached(root, str(path), device, about.st_ino)
        assert fd is not None and os.read(fd, 7) == b"content"
        os.close(fd)
        for name, where, inode in (
            ("file", device + 1, about.st_ino),
            ("file", device, about.st_ino + 1),
            ("link", device, about.st_ino),
            ("none", device, about.st_ino),
            ("fifo", device, (tmp_path / "fifo").stat().st_ino),
        ):
            assert open_cached(root, str(tmp_path / name), where, inode) is None
    finally:
        os.close(root)


def test_devices_of_others_are_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN mounts as proc(5) shows them, one with an optional field less
    mounts = (
        b"22 27 254:3 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        b"23 27 0:44 / /home/a\\040b rw - fuse.sshfs a@b rw\n"
        b"24 27 0:45 / /net rw master:1 shared:2 - nfs4 server:/ rw\n"
        b"25 27 0:46 / /dev/shm rw - tmpfs tmpfs rw\n"
        b"damaged\n"
    )
    monkeypatch.setattr(filesystems.procfs, "read", lambda *_: mounts)
    assert own_devices() == {254 << 20 | 3, 46}
