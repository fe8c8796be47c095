"""Where a snapshot goes: files, pipes and a store; and what is left when it cannot go there."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.errors import StoreError
from collector.model import Outcome, Record
from collector.policy.types import Codec, Compress
from collector.snapshot.store_snapshot import store_snapshot
from collector.snapshot.take import SnapshotRequest
from collector.snapshot.write import CoreContents
from collector.store.store import Store
from tests.system.live_targets import Target, live_target, waited_for
from tests.system.live_victims import wait_untraced
from tests.system.scratch import tmpfs
from tests.system.snapshots import (
    COMMAND,
    backtraces,
    coreward,
    differences,
    done,
    executable_of,
    refused,
)
from tests.system.test_snapshot_equality import registers
from tests.system.victims import PATIENCE, ROOT

STRANGER = 4242  # a user that nobody is
MIB = 64  # of the target's memory, which no pipe and no small disk takes


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with live_target(tmp_path_factory.mktemp("target"), f"memory:{MIB}", "spin:1") as target:
        yield target


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a tenth of the target's memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    with tmpfs(folder, "6m"):
        yield folder


@pytest.fixture(autouse=True)
def _no_rseq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the kernel writes into memory of each thread that it moves to another CPU."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")


@contextlib.contextmanager
def started(*words: object, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in the background."""
    with subprocess.Popen(
        [*COMMAND, *map(str, words)], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def state_of(target: Target) -> str:
    text = Path(f"/proc/{target.pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0]


def waits_in(pid: int) -> set[str]:
    """Functions of the kernel in which its threads wait."""
    return {(task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}


def goes_on(target: Target) -> None:
    """Its threads run, with what they had in their registers, and nobody traces them."""
    wait_untraced(target.pid)
    assert target.goes_on()
    assert target.report.broken == 0


def test_a_stream_needs_no_seeking(tmp_path: Path) -> None:
    # GIVEN a process at rest
    with live_target(tmp_path, "memory:4", "futex:2") as target:
        # WHEN a snapshot goes through a pipe, as it is and compressed, and to a file
        pipe, packed, file = (tmp_path / name for name in ("pipe", "packed.zst", "file"))
        command = " ".join(COMMAND)
        for to in (f"-o - | cat > {pipe}", f"--compress zstd -o - | cat > {packed}", f"-o {file}"):
            script = f"set -o pipefail; {command} snapshot {target.pid} {to}"
            took = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=True)
            assert took.stdout == b""
        executable = executable_of(target.pid)
    subprocess.run(["zstd", "-dq", packed, "-o", tmp_path / "unpacked"], check=True)

    # THEN each is the same core
    expected = backtraces(file, executable)
    assert len(expected) == 3
    for name in ("pipe", "unpacked"):
        assert backtraces(tmp_path / name, executable) == expected
        with CoreFile(tmp_path / name) as core, CoreFile(file) as whole:
            assert registers(core) == registers(whole)
            assert differences(core, whole) == []
            assert core.segments == whole.segments


def test_compressed_file(tmp_path: Path) -> None:
    with live_target(tmp_path, "memory:4", "futex:2") as target:
        plain, packed = tmp_path / "plain", tmp_path / "packed.zst"
        done(coreward("snapshot", target.pid, "-o", plain))
        done(coreward("snapshot", target.pid, "--compress", "zstd", "-o", packed))
    subprocess.run(["zstd", "-dq", packed, "-o", tmp_path / "unpacked"], check=True)
    with CoreFile(tmp_path / "unpacked") as core, CoreFile(plain) as whole:
        assert registers(core) == registers(whole)
        assert differences(core, whole) == []


def test_a_named_pipe(target: Target, tmp_path: Path) -> None:
    # GIVEN a named pipe that somebody reads
    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    with copy.open("wb") as out, subprocess.Popen(["cat", fifo], stdout=out):
        # WHEN a snapshot goes to it
        done(coreward("snapshot", target.pid, "-o", fifo))
    # THEN the reader has a whole core
    with CoreFile(copy) as core:
        assert len(core.threads) == 2 and not core.truncated


def test_a_pipe_that_another_user_has_planted(target: Target, tmp_path: Path) -> None:
    # GIVEN a folder like /tmp, and names in it that another user has taken before
    tmp_path.chmod(0o1777)
    names = [tmp_path / "planted", tmp_path / f"core.{target.pid}", tmp_path / "link"]
    for name in names[:2]:
        os.mkfifo(name)
    names[2].symlink_to(names[0])
    for name in names:
        os.chown(name, STRANGER, STRANGER, follow_symlinks=False)
    # WHEN root writes a snapshot there
    for words in (
        ("snapshot", target.pid, "-o", names[0]),
        ("snapshot", target.pid, "-o", names[2]),
        ("snapshot", target.pid, "-o", names[2], "--mode", "threads"),
        ("gcore", "-o", tmp_path / "core", target.pid),
    ):
        took = coreward(*words)
        # THEN it is refused at once, although nobody reads the pipe
        assert took.returncode != 0 and f"uid {STRANGER}" in took.stderr
    goes_on(target)


def test_a_reader_that_leaves(target: Target) -> None:
    # WHEN the reader has enough after a few bytes
    with started("snapshot", target.pid, "-o", "-", stdout=subprocess.PIPE) as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.read(4) == b"\x7fELF"
        command.stdout.close()
        # THEN nothing is said of it
        assert command.stderr.read() == b""
        assert command.wait(PATIENCE) == 0
    goes_on(target)


def test_no_core_for_a_terminal(target: Target) -> None:
    ours, theirs = pty.openpty()
    try:
        with started("snapshot", target.pid, "-o", "-", stdout=theirs) as command:
            _, said = command.communicate(timeout=PATIENCE)
    finally:
        os.close(ours)
        os.close(theirs)
    assert command.returncode == 2
    assert said.startswith(b"coreward: a core is not for a terminal: ")


def test_existing_files_stay(target: Target, tmp_path: Path) -> None:
    file = tmp_path / "core"
    file.write_text("precious")
    # WHEN it is not asked for by --force, THEN a file stays as it was
    took = coreward("snapshot", target.pid, "--mode", "threads", "-o", file)
    assert took.returncode == 2
    assert took.stderr == f"coreward: {file}: exists; --force replaces it\n"
    assert file.read_text() == "precious"
    # AND else it is replaced
    done(coreward("snapshot", target.pid, "--mode", "threads", "-o", file, "--force"))
    with CoreFile(file) as core:
        assert len(core.threads) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["core"]


@pytest.mark.parametrize("way", [[], ["--no-inject"]], ids=["fork", "copy"])
def test_a_full_disk(way: list[str], target: Target, small_disk: Path) -> None:
    # WHEN there is no room for the file
    file = small_disk / "core"
    took = coreward("snapshot", target.pid, *way, "-o", file)
    # THEN that is said, no file is left, and the process goes on
    assert refused(took) == f"{file}: cannot be written: No space left on device"
    assert list(small_disk.iterdir()) == []
    goes_on(target)


def test_a_full_store(target: Target, small_disk: Path) -> None:
    # WHEN there is no room in the store
    took = coreward("snapshot", target.pid, "--store", small_disk)
    # THEN that is said, and nothing of it is left there
    assert refused(took).endswith("core.zst: cannot be written: No space left on device")
    assert list((small_disk / "crashes").iterdir()) == []
    assert done(coreward("list", "--store", small_disk, "--json")).stdout.strip() in ("", "[]")
    goes_on(target)


def test_a_store_with_a_reserve(target: Target, tmp_path: Path) -> None:
    reserve = 50 << 20

    def snapshot(min_free: int) -> Record:
        request = SnapshotRequest(min_free=min_free)
        plain = Compress(codec=Codec.NONE)
        return store_snapshot(store, target.pid, request, CoreContents(), None, plain)

    with tmpfs(tmp_path, "96m"), Store(tmp_path, create=True) as store:
        # WHEN there is less free than the reserve, THEN nobody stands for a snapshot
        with pytest.raises(StoreError, match=r"no snapshot: 9\d MiB are free, .* is 1TiB"):
            snapshot(1 << 40)
        assert list((tmp_path / "crashes").iterdir()) == []
        # WHEN there is more, but not for all of it, THEN the core ends where it begins
        record = snapshot(reserve)
        assert record.outcome is Outcome.TRUNCATED
        assert record.lost["memory"].startswith("the core ends where the disk's reserve begins")
        assert record.core_memory is not None and record.core_memory > 0
        assert store.free_bytes() >= reserve
    goes_on(target)


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ([], signal.SIGINT),
        ([], signal.SIGKILL),
        (["--no-inject"], signal.SIGTERM),
        (["--no-inject"], signal.SIGKILL),
    ],
)
def test_interrupted_while_nobody_reads(
    way: list[str], number: signal.Signals, target: Target
) -> None:
    # GIVEN a snapshot in the middle of a copy, into a pipe that is full
    before = target.state()
    with started("snapshot", target.pid, *way, "-o", "-", stdout=subprocess.PIPE) as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.read(4) == b"\x7fELF"
        assert waited_for(lambda: "anon_pipe_write" in waits_in(command.pid))
        assert state_of(target) == ("t" if way else "S")
        # WHEN it gets a signal
        command.send_signal(number)
        # THEN it ends, quietly, although the pipe is still full
        expected = -number if number == signal.SIGKILL else 128 + number
        assert command.wait(PATIENCE / 2) == expected
        assert command.stderr.read() == b""
    # AND the process goes on as it was
    goes_on(target)
    assert target.changed(before) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_while_a_file_is_written(
    number: signal.Signals, target: Target, tmp_path: Path
) -> None:
    # GIVEN a snapshot in the middle of a copy to a file
    file = tmp_path / "core"
    with started("snapshot", target.pid, "--no-inject", "-o", file) as command:
        assert waited_for(lambda: any(f.stat().st_blocks for f in tmp_path.glob(".tmp-*")))
        assert state_of(target) == "t"
        # WHEN it gets a signal
        command.send_signal(number)
        command.wait(PATIENCE / 2)
    # THEN the process goes on
    goes_on(target)
    # AND there is no file, except a hidden one if it had no time to remove that
    assert command.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert not file.exists()
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


def test_no_room_for_a_precopy(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process that is large enough for a pre-copy, and no room for temporary files
    monkeypatch.setenv("TMPDIR", str(small_disk))
    with (
        live_target(tmp_path, "memory:260") as target,
        started("snapshot", target.pid, "-o", "-") as command,
    ):
        # WHEN it is snapshot into a stream, THEN that goes well in another way
        _, said = command.communicate(timeout=PATIENCE)
    assert command.returncode == 0
    why = f"no pre-copy: no room for it in {small_disk}: No space left on device"
    assert said.decode().startswith(f"process {target.pid}: snapshot, full-stop by fork: {why};")


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    # GIVEN a process whose copy takes a moment
    with live_target(tmp_path, "memory:300") as target:
        ours, theirs = pty.openpty()
        try:
            # WHEN it is written while somebody watches
            command = [*COMMAND, "snapshot", str(target.pid), "-o", str(tmp_path / "core")]
            with subprocess.Popen(command, cwd=ROOT, stderr=theirs) as process:
                os.close(theirs)
                seen = b""
                with contextlib.suppress(OSError):  # EIO: the other side is closed
                    while part := os.read(ours, 65536):
                        seen += part
            assert process.returncode == 0
        finally:
            os.close(ours)
    # THEN they see how far it is
    assert b" MiB" in seen and "━".encode() in seen
    assert b"the process stood for " in seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_on_the_way_into_the_store(
    number: signal.Signals, target: Target, tmp_path: Path
) -> None:
    # GIVEN a snapshot in the middle of a copy into the store
    crashes = tmp_path / "store" / "crashes"
    words = ("--compress", "none", "--store", tmp_path / "store")
    with started("snapshot", target.pid, "--no-inject", *words) as command:
        assert waited_for(lambda: any(f.stat().st_blocks for f in crashes.glob("*/.tmp-*")))
        assert state_of(target) == "t"
        # WHEN it gets a signal
        command.send_signal(number)
        command.wait(PATIENCE / 2)
    # THEN the process goes on
    goes_on(target)
    # AND there is no record of it, nor anything else unless it had no time to clean up
    listed = done(coreward("list", "--store", tmp_path / "store"))
    assert listed.stdout.startswith("no deaths on record in ") and listed.stderr == ""
    assert number == signal.SIGKILL or list(crashes.iterdir()) == []
