"""Cores that are pulled: stored ones and those of live processes, by whoever reads files."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.live_targets import differences, live_target, without_rseq, word
from tests.system.mounts import Mount, as_nobody, mount, reader
from tests.system.snapshots import NOBODY, coreward, done, gdb, nobodys_folder
from tests.system.victims import PATIENCE, ROOT, build, running, wait_until

__all__ = ["without_rseq"]  # a fixture

pytestmark = [
    pytest.mark.beside,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no FUSE here"),
]
PAGE = 4096


def bytes_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


# --- stored cores ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, dict[str, Path]]]:
    """A mount of a store with a compressed and a plain core; the ID and the whole of each."""
    folder = tmp_path_factory.mktemp("stored")
    store, plain = folder / "store", {}
    with live_target(folder, "memory:24", "futex:2") as target:
        for codec in ("zstd", "none"):
            took = done(coreward("snapshot", target.pid, "--store", store, "--compress", codec))
            identity = took.stdout.split(":")[0]
            plain[identity] = folder / f"{identity}.plain"
            done(coreward("core", identity, "--store", store, "-o", plain[identity]))
    with mount(folder, store=store) as mounted:
        yield mounted, plain


def test_stored_cores_are_listed_with_their_sizes(stored: tuple[Mount, dict[str, Path]]) -> None:
    mounted, plain = stored
    found = {path.name: path.stat() for path in (mounted.folder / "crashes").iterdir()}
    assert {name: about.st_size for name, about in found.items()} == {
        f"{identity}.core": path.stat().st_size for identity, path in plain.items()
    }
    assert all(about.st_mode & 0o777 == 0o400 for about in found.values())


def test_any_part_of_a_stored_core_is_the_same_as_of_the_whole(
    stored: tuple[Mount, dict[str, Path]], tmp_path: Path
) -> None:
    """
    GIVEN a stored core, compressed or not
    WHEN it is read by pread(2), mmap(2), sendfile(2), dd at some offset or cp
    THEN the bytes are those of the core that `coreward core` writes
    """
    mounted, plain = stored
    for identity, whole in plain.items():
        path, expected = mounted.crash(identity), whole.read_bytes()
        offsets = random.Random(1).sample(range(len(expected)), 50)
        for offset in offsets:
            size = min(70_000, len(expected) - offset)
            assert bytes_at(path, offset, size) == expected[offset : offset + size]
        with path.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == expected
            out = os.memfd_create("sent")
            sent, size = 0, len(expected)
            while sent < size:
                sent += os.sendfile(out, file.fileno(), sent, size - sent)
            assert os.pread(out, size, 0) == expected
            os.close(out)
        block = f"if={path} bs=1000 skip=4321 count=77"
        dd = subprocess.run(["dd", *block.split()], check=True, capture_output=True)
        assert dd.stdout == expected[4_321_000:4_398_000]
        copy = tmp_path / "copy"
        subprocess.run(["cp", path, copy], check=True)
        assert copy.read_bytes() == expected
        assert copy.stat().st_blocks * 512 < len(expected)


def test_debuggers_see_the_same_in_a_mounted_core(
    stored: tuple[Mount, dict[str, Path]],
) -> None:
    mounted, plain = stored
    program = build("live_target")
    for identity, whole in plain.items():
        path = mounted.crash(identity)
        commands = ("thread apply all bt", "info registers", "x/16gx $sp")
        assert gdb(path, program, *commands) == gdb(whole, program, *commands)
        words = ["eu-stack", f"--executable={program}", "--core"]
        ours = subprocess.run([*words, path], capture_output=True, text=True, check=False)
        theirs = subprocess.run([*words, whole], capture_output=True, text=True, check=False)
        assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)
        assert "TID" in ours.stdout


def test_debug_and_bt_mount_a_compressed_core_and_leave_nothing(
    stored: tuple[Mount, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    GIVEN a compressed core
    WHEN `debug` shows where it is mounted, and what is in it
    THEN it is a file in a folder of its own, with the same contents; and afterwards there is none
    """
    mounted, plain = stored
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = mounted.folder.parent / "store"
    identity = next(i for i in plain if (store / "crashes" / i / "core.zst").exists())
    shown = ("-batch", "-nx", "-ex", "info files", "-ex", "thread apply all bt")
    took = done(coreward("debug", identity, "--store", store, "--", *shown))
    assert f"`{tmp_path}/coreward-" in took.stdout
    expected = gdb(plain[identity], build("live_target"), "thread apply all bt")
    assert [line for line in expected.splitlines() if line.startswith("#")] == [
        line for line in took.stdout.splitlines() if line.startswith("#")
    ]
    all_threads = done(coreward("bt", identity, "--all", "--store", store)).stdout
    assert all_threads.count("Thread ") == 1 and "\n2 threads: " in all_threads
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there(stored: tuple[Mount, dict[str, Path]]) -> None:
    mounted, plain = stored
    for name in ("crashes/0123.core", "crashes/..core", "live/0.core", "live/x.core", "other"):
        with pytest.raises(FileNotFoundError):
            (mounted.folder / name).stat()
    with pytest.raises(OSError, match="Read-only"):
        mounted.crash(next(iter(plain))).open("r+b")
    with pytest.raises(OSError, match="Read-only"):
        (mounted.folder / "crashes" / "new").touch()


# --- live processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mount(tmp_path_factory.mktemp("live")) as mounted:
        yield mounted


def test_a_live_core_is_of_one_instant_and_leaves_no_trace(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a process of which one thread counts in two pages, first in one and then in the other
    WHEN its core is opened, and parts of it are read, the two pages apart from each other in time
    THEN fstat(2) says the size before anything is read, the two counts fit each other, the threads
        are all there, and when it is closed the process is as it was
    """
    with live_target(tmp_path, "lockstep", "spin:1", "futex:2", "epoll:1", "memory:8") as target:
        before, report = target.state(), target.report
        path = live.live(target.pid, "one")
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            with CoreFile(path) as core:  # the same name: the same snapshot
                second = word(core, report.second)
                writes = target.report.spins
                wait_until(lambda: target.report.spins > writes, "it does not go on")
                assert word(core, report.first) - second in (0, 1)
                assert core.size == size
                assert len(core.threads) == before.threads
                assert core.coreward_note is not None and core.coreward_note.consistent
            assert len(os.pread(file.fileno(), PAGE, size - 100)) == 100
        live.wait_without_holders()
        assert target.changed(before) == {}


@pytest.mark.usefixtures("without_rseq")
def test_a_live_core_has_the_memory_that_a_snapshot_has(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a process at rest
    WHEN its core is copied from the mount, and taken by `snapshot`
    THEN threads, segments and each byte of memory are the same
    """
    with live_target(tmp_path, "memory:8", "futex:2") as target:
        source = live.live(target.pid)
        subprocess.run(["cp", source, tmp_path / "pulled"], check=True)
        done(coreward("snapshot", target.pid, "-o", tmp_path / "taken"))
    with CoreFile(tmp_path / "pulled") as pulled, CoreFile(tmp_path / "taken") as taken:
        assert [t.tid for t in pulled.threads] == [t.tid for t in taken.threads]
        assert [p.segment for p in pulled.segments] == [p.segment for p in taken.segments]
        assert differences(tmp_path / "pulled", taken) == []


def test_debuggers_open_a_live_core(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a process with some threads
    WHEN gdb opens its core, which it closes and opens again
    THEN it sees all threads, from one snapshot; eu-stack, which maps the file, sees them too
    """
    with live_target(tmp_path, "futex:3", "memory:8") as target:
        path, program = live.live(target.pid), build("live_target")
        before = live.log.count("snapshot, full-stop by fork")
        assert gdb(path, program, "thread apply all bt").count("\nThread ") == 4
        assert live.log.count("snapshot, full-stop by fork") == before + 1
        took = subprocess.run(
            ["eu-stack", f"--executable={program}", "--core", path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert took.stdout.count("TID") == 4
        live.wait_without_holders()


def test_each_process_has_its_own_snapshot(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a process that counts
    WHEN two processes open its core one after the other
    THEN each sees the count of its own moment, however often it looks
    """
    with live_target(tmp_path, "lockstep") as target:
        path, place = live.live(target.pid), target.report.first
        with reader(path) as early:
            first = early.word(place)
            with reader(path) as late:
                assert late.word(place) > first
                assert early.word(place) == first
        live.wait_without_holders()


def test_shared_snapshots(tmp_path: Path) -> None:
    """
    GIVEN a mount whose openers share
    WHEN two processes open the core of a process that counts
    THEN both see the same count; when both have closed it the next one sees another
    """
    with (
        live_target(tmp_path, "lockstep") as target,
        mount(tmp_path, "--share") as mounted,
    ):
        path, place = mounted.live(target.pid), target.report.first
        with reader(path) as early, reader(path) as late:
            first = early.word(place)
            assert late.word(place) == first
        mounted.wait_without_holders()
        with reader(path) as later:
            assert later.word(place) > first


def offset_of(core: Path, address: int) -> int:
    """Where the memory at an address is in a file that is open: another snapshot has another
    layout."""
    with CoreFile(core) as opened:
        for placed in opened.segments:
            inside = address - placed.segment.vaddr
            if 0 <= inside < placed.segment.filesz:
                return placed.offset + inside
    raise AssertionError(f"{address:#x} is not in the core")


def test_a_read_fetches_what_it_asks_for(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a process with much memory, and an open core of it
    WHEN one page is read
    THEN whoever reads the process's memory for us has read little more
    """
    with live_target(tmp_path, "memory:64") as target:
        path = live.live(target.pid, "lazy")
        with path.open("rb", buffering=0) as file:
            offset = offset_of(path, target.report.memory) + 100 * PAGE
            (holder,) = live.holders()
            before = chars_read(holder)
            assert len(os.pread(file.fileno(), PAGE, offset)) == PAGE
            assert PAGE <= chars_read(holder) - before < 16 * PAGE


def chars_read(pid: int) -> int:
    """Bytes that a process has read from any file, /proc/PID/mem among them: `rchar` of proc(5)."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def test_a_reader_that_does_not_wait(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN a live core that is opened with O_NONBLOCK
    WHEN it is read at once THEN there is EAGAIN, or the snapshot was quick
    WHEN poll(2) says that it is ready THEN there is data
    """
    with live_target(tmp_path, "memory:8") as target:
        fd = os.open(live.live(target.pid, "poll"), os.O_RDONLY | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                os.pread(fd, 4, 0)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(PATIENCE * 1000)
            assert os.pread(fd, 4, 0) == b"\x7fELF"
        finally:
            os.close(fd)


# --- what may go wrong ----------------------------------------------------------------------------


def test_a_copy_outlives_its_process(live: Mount, tmp_path: Path) -> None:
    """
    GIVEN an open core of a process, by copy-on-write
    WHEN the process is killed
    THEN private memory is what it was
    """
    with live_target(tmp_path, "memory:8") as target:
        path = live.live(target.pid, "outlives")
        with path.open("rb", buffering=0) as file:
            offset = offset_of(path, target.report.memory)
            before = os.pread(file.fileno(), PAGE, offset)
            target.victim.process.kill()
            target.victim.wait()
            assert os.pread(file.fileno(), PAGE, offset) == before
    live.wait_without_holders()


@pytest.mark.parametrize("mode", ["nonstop", "threads"])
def test_memory_that_is_gone_is_an_error(mode: str, tmp_path: Path) -> None:
    """
    GIVEN an open core whose memory is read from the process itself
    WHEN the process is killed between two reads
    THEN the next one of memory fails with EIO and a line in the log, and gives no bytes
    """
    with mount(tmp_path, "--mode", mode) as mounted, live_target(tmp_path, "memory:8") as target:
        path = mounted.live(target.pid, "gone")
        with path.open("rb", buffering=0) as file:
            place = target.report.memory if mode == "nonstop" else program_of(path)
            offset = offset_of(path, place)
            assert len(os.pread(file.fileno(), PAGE, offset)) == PAGE
            target.victim.process.kill()
            target.victim.wait()
            with pytest.raises(OSError) as error:
                os.pread(file.fileno(), PAGE, offset)
            assert error.value.errno == errno.EIO
        assert f"process {target.pid} " in mounted.log
        assert path.name in mounted.log


def program_of(core: Path) -> int:
    """An address that even a core of the stacks has."""
    with CoreFile(core) as opened:
        return next(p.segment.vaddr for p in opened.segments if p.segment.filesz >= PAGE)


def test_another_program_is_an_error(tmp_path: Path) -> None:
    """
    GIVEN an open core whose memory is read from the process itself
    WHEN the process begins another program
    THEN no byte of that is read: EIO
    """
    begin = "import os, sys; print('ready', flush=True); sys.stdin.readline(); "
    begin += "os.execv('/bin/sleep', ['sleep', '1000'])"
    with (
        mount(tmp_path, "--mode", "nonstop") as mounted,
        subprocess.Popen(
            [sys.executable, "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            with mounted.live(process.pid, "exec").open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                process.stdin.write(b"\n")
                process.stdin.flush()
                name = Path(f"/proc/{process.pid}/comm")
                wait_until(lambda: name.read_text() == "sleep\n", "it begins nothing")
                with pytest.raises(OSError) as error:
                    os.pread(file.fileno(), PAGE, size // 2)
                assert error.value.errno == errno.EIO
        finally:
            process.kill()


def test_a_killed_mount_is_unmounted_and_its_targets_are_free(tmp_path: Path) -> None:
    """
    GIVEN a mount, and a live core that is open
    WHEN the mount is killed
    THEN nothing is mounted any more, and the process is as it was
    """
    with live_target(tmp_path, "futex:2", "spin:1", "memory:8") as target:
        before = target.state()
        with mount(tmp_path) as mounted:
            fd = os.open(mounted.live(target.pid, "killed"), os.O_RDONLY)
            assert os.read(fd, 4) == b"\x7fELF"
            mounted.process.send_signal(signal.SIGKILL)
            wait_until(lambda: not os.path.ismount(mounted.folder), "it is still mounted")
            with pytest.raises(OSError, match="not connected"):
                os.pread(fd, 4, 1 << 20)
            with contextlib.suppress(OSError):  # what is not connected cannot be closed well
                os.close(fd)
            assert target.changed(before) == {}


def test_a_killed_holder_is_an_error(live: Mount, tmp_path: Path) -> None:
    with live_target(tmp_path, "memory:8") as target:
        before = target.state()
        with live.live(target.pid, "holder").open("rb", buffering=0) as file:
            assert os.read(file.fileno(), 4) == b"\x7fELF"
            for holder in live.holders():
                os.kill(holder, signal.SIGKILL)
            with pytest.raises(OSError) as error:
                os.pread(file.fileno(), 4, 0)
            assert error.value.errno == errno.EIO
        assert target.changed(before) == {}


def test_snapshots_are_bounded_in_number_and_age(tmp_path: Path) -> None:
    """
    GIVEN a mount with one snapshot at a time, for a second
    WHEN a second one is opened THEN it is refused
    WHEN the first one is too old THEN reading it fails, and its process is as it was
    """
    with (
        live_target(tmp_path, "futex:1", "memory:8") as target,
        mount(tmp_path, "--snapshots", "1", "--max-age", "1s") as mounted,
    ):
        before = target.state()
        with mounted.live(target.pid, "a").open("rb", buffering=0) as file:
            with pytest.raises(OSError) as error:
                mounted.live(target.pid, "b").open("rb")
            assert error.value.errno == errno.EBUSY
            assert os.fstat(file.fileno()).st_size > 8 << 20
            mounted.wait_without_holders()
            with pytest.raises(OSError) as error:
                os.pread(file.fileno(), 4, 0)
            assert error.value.errno == errno.EIO
        assert "older than it may be" in mounted.log
        assert target.changed(before) == {}
        with mounted.live(target.pid, "b").open("rb", buffering=0) as file:
            assert os.read(file.fileno(), 4) == b"\x7fELF"


def test_memory_that_nobody_gives(mounted: Path, tmp_path: Path) -> None:
    """
    GIVEN a process with a mapping of a file whose owner answers nobody any more
    WHEN that is read of its live core
    THEN what is in memory is there, the rest is zeros, and nobody waits for that owner
    """
    with (
        running("fuse_private", str(mounted), cwd=tmp_path) as victim,
        live_target(tmp_path, "memory:8") as other,
        mount(tmp_path) as ours,
    ):
        with ours.live(victim.pid, "hangs").open("rb", buffering=0) as file:
            offset = offset_of(ours.live(victim.pid, "hangs"), 0x100000000000)
            assert os.pread(file.fileno(), 7, offset) == b"of fuse"
            assert os.pread(file.fileno(), 7, offset + 9 * PAGE) == bytes(7)
        with ours.live(other.pid, "serves").open("rb", buffering=0) as file:
            assert os.read(file.fileno(), 4) == b"\x7fELF"


# --- other users ----------------------------------------------------------------------------------


def test_others_see_only_what_is_theirs(stored: tuple[Mount, dict[str, Path]]) -> None:
    """
    GIVEN a process of a user, one of root, and root's crashes
    WHEN that user is allowed THEN he sees and reads his process, and nothing else
    WHEN he is not THEN he does not even see what is mounted
    """
    mounted, plain = stored
    sleep = ["sleep", "1000"]
    with (
        nobodys_folder() as folder,
        mount(folder, "--allow", str(NOBODY), store=mounted.folder.parent / "store") as ours,
        subprocess.Popen(sleep, user=NOBODY, group=NOBODY, extra_groups=[]) as his,
        subprocess.Popen(sleep) as roots,
    ):
        try:
            seen = as_nobody(f"ls {ours.folder}/live {ours.folder}/crashes").stdout.split()
            assert f"{his.pid}.core" in seen
            assert f"{roots.pid}.core" not in seen
            assert not {f"{identity}.core" for identity in plain} & set(seen)
            assert as_nobody(f"head -c 4 {ours.live(his.pid)}").stdout == "\x7fELF"
            for path in (ours.live(roots.pid), *map(ours.crash, plain)):
                assert "No such file" in as_nobody(f"head -c 4 {path}").stderr
            assert as_nobody(f"ls {mounted.folder}").returncode != 0
        finally:
            his.kill()
            roots.kill()


# --- the document ---------------------------------------------------------------------------------


def test_the_example_of_the_document(stored: tuple[Mount, dict[str, Path]], tmp_path: Path) -> None:
    """Each command of docs/mount.md is run as it stands there."""
    mounted, plain = stored
    text = (ROOT / "docs/mount.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    command = tmp_path / "bin" / "coreward"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m collector "$@"\n')
    command.chmod(0o755)
    with running("live_target", str(tmp_path / "report"), "futex:2", cwd=tmp_path) as victim:
        took = subprocess.run(
            ["bash", "-e", "-c", "\n".join(["set -m", *commands])],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{command.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "COREWARD_STORE": str(mounted.folder.parent / "store"),
                "PID": str(victim.pid),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert took.returncode == 0, took.stderr
        assert {f"{identity}.core" for identity in plain} <= set(took.stdout.split())
        assert took.stdout.count("\nThread ") == 3
        for name in (f"{victim.pid}.core", "pulled.core"):
            with CoreFile(tmp_path / name) as core:
                assert len(core.threads) == 3
        assert (tmp_path / "head").read_bytes() == (tmp_path / "pulled.core").read_bytes()[:4096]
    assert not os.path.ismount(tmp_path / "cores")
