"""Address space that is not memory: reservations, and private mappings of files with large holes.

It costs neither time nor room, whatever its size, and what it holds is in the core all the same.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.ranges import union
from tests.system.agents import agent
from tests.system.snapshots import coreward, done
from tests.system.victims import build, running

PLACE = 0x100000000000  # where the victim has its area
TIB = 1 << 40
UNLIMITED = "defaults: {limit: none}"
SMALL_CORE = 2 << 20  # bytes, compressed or on disk


def gdb(core: Path, *commands: str, program: str = "sparse") -> str:
    words = [word for command in commands for word in ("-ex", command)]
    ran = subprocess.run(
        ["gdb", "-nx", "-batch", *words, str(build(program)), "-c", str(core)],
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout + ran.stderr


def held_whole(core: CoreFile, size: int) -> bool:
    """Whether all of the area is in the core, holes included."""
    held = union(
        (p.segment.vaddr, p.segment.vaddr + p.segment.filesz)
        for p in core.segments
        if PLACE <= p.segment.vaddr < PLACE + size
    )
    return held == [(PLACE, PLACE + size)]


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_crash_with_terabytes_reserved(codec: str, tmp_path: Path) -> None:
    # GIVEN a process that has touched 64 pages of 8 TiB WHEN it crashes
    size = 8 * TIB
    with agent(tmp_path, config=f"defaults: {{compress: {codec}}}") as one:
        with running("sparse", "anon", str(size >> 20), "64", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        record = one.record(victim.pid)
        # THEN its core is whole and small
        assert (record["outcome"], record["lost"]) == ("complete", {})
        assert record["core_size"] < SMALL_CORE
        plain = one.core(record, tmp_path / "plain")
    assert plain.stat().st_blocks * 512 < SMALL_CORE
    with CoreFile(plain) as core:
        assert held_whole(core, size)
        for number in range(64):
            at = PLACE + number * size // 64
            assert core.read(at, 4096) == bytes([1 + number]).ljust(4096, b"\0")
            assert core.read(at + size // 128, 16) == bytes(16)
    # AND gdb reads what was touched, and zeros between
    far = PLACE + 63 * size // 64
    said = gdb(plain, "bt", f"x/1xb {far:#x}", f"x/1xg {far + size // 128:#x}")
    assert "crash" in said and "main" in said
    assert f"{far:#x}:\t0x40" in said
    assert f"{far + size // 128:#x}:\t0x0000000000000000" in said


@pytest.mark.parametrize("words", [("gcore",), ("snapshot",), ("snapshot", "--mode", "nonstop")])
def test_a_living_process_with_terabytes_reserved(words: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN such a process that lives WHEN a core of it is taken
    size = 8 * TIB
    with running("sparse", "anon", str(size >> 20), "64", cwd=tmp_path) as victim:
        if words == ("gcore",):
            done(coreward("gcore", "-o", tmp_path / "core", victim.pid))
            path = tmp_path / f"core.{victim.pid}"
        else:
            path = tmp_path / "core"
            done(coreward(*words, victim.pid, "-o", path))
        assert victim.process.poll() is None
    # THEN it is as small, and holds all
    assert path.stat().st_blocks * 512 < SMALL_CORE
    with CoreFile(path) as core:
        assert held_whole(core, size)
        at = PLACE + 63 * size // 64
        assert core.read(at, 4096) == bytes([64]).ljust(4096, b"\0")


def sparse_file(path: Path, size: int, *places: int) -> Path:
    """A file of holes, but for a page at each place."""
    with path.open("wb") as file:
        file.truncate(size)
        for place in places:
            file.seek(place)
            file.write(f"page {place:#x}".encode().ljust(4096, b"."))
    return path


def test_holes_of_a_mapped_file_are_not_read(tmp_path: Path) -> None:
    # GIVEN a private mapping of 15 TiB of which the file holds two pages, none in memory
    size, places = 15 * TIB, (3 << 40, 14 << 40)
    file = sparse_file(tmp_path / "file", size, *places)
    with agent(tmp_path) as one:
        with running("sparse", "file", str(size >> 20), str(file), cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        record = one.record(victim.pid)
        # THEN the core is whole: with the page that was written, and those of the file
        assert (record["outcome"], record["lost"]) == ("complete", {})
        assert record["core_size"] < SMALL_CORE
        plain = one.core(record, tmp_path / "plain")
    with CoreFile(plain) as core:
        assert held_whole(core, size)
        assert core.read(PLACE + 4096, 4096) == b"\1".ljust(4096, b"\0")
        for place in places:
            assert core.read(PLACE + place, 4096) == f"page {place:#x}".encode().ljust(4096, b".")


def test_who_cannot_be_read_keeps_no_writer_from_others(tmp_path: Path) -> None:
    # GIVEN an agent with one writer, and processes that have 15 TiB of a file mapped which has no
    # name any more: nobody can say what of it is a hole
    size = 15 * TIB
    with agent(tmp_path, config=f"{UNLIMITED}\ncapture: {{workers: 1}}") as one:
        dead = []
        for number in range(2):
            file = sparse_file(tmp_path / f"file{number}", size, 1 << 40)
            with running("sparse", "file", str(size >> 20), str(file), cwd=tmp_path) as victim:
                file.unlink()
                victim.go()
                victim.wait()
            dead.append(victim.pid)
        # WHEN an innocent one crashes behind them
        with running("null_main", cwd=tmp_path) as innocent:
            innocent.go()
            innocent.wait()
        # THEN it gets its core, and so do they, without what is only in the file
        record = one.record(innocent.pid)
        assert (record["outcome"], record["lost"]) == ("complete", {})
        for pid in dead:
            record = one.record(pid)
            assert "of mapped files were not in memory" in record["lost"]["memory"]
            assert "crash" in [frame["function"] for frame in record["frames"]]
            with CoreFile(one.core(record, tmp_path / str(pid))) as core:
                assert core.read(PLACE + 4096, 1) == b"\1"
                note = core.coreward_note
                assert note is not None and note.left_out_bytes > size - TIB


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    # GIVEN a bound on what is read, below the memory of a process
    config = "capture: {max_read: 8MiB}"
    with agent(tmp_path, config=config) as one:
        with running("resident", "64", "2", "random", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
        record = one.record(victim.pid)
        # THEN its stacks are there, and the reason why not all is
        assert record["outcome"] == "truncated"
        assert "capture.max_read" in record["lost"]["memory"]
        assert record["core_memory"] <= 8 << 20
        with CoreFile(one.core(record, tmp_path / "plain")) as core:
            assert len(core.threads) == 3
        said = gdb(tmp_path / "plain", "thread apply all bt", program="resident")
    # gdb goes one step beyond the first frame of a thread, to address 0
    inner = re.sub(r"0x0+ in \?\? \(\)", "", said)
    assert "Thread 3 " in said and "crash" in said and "??" not in inner
