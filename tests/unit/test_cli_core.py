"""What `core` and `debug` do with a core: a plain ELF, sparse, whole or not at all; gdb's way."""

from __future__ import annotations

import os
import resource
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from collector.cli.executable import build_id_of
from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes
from collector.elfcore.sink import WriterParams, ZstdWriter
from collector.elfcore.types import Mapping, ProcessImage, Prot
from collector.model import Outcome, Record
from collector.store.store import Store
from tests.unit.elfcore_samples import segment, thread
from tests.unit.store_samples import SEGFAULT, numbered

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable).resolve()
BASE, HEAP = 0x400000, 0x500000
HEADERS = 8192  # bytes of the executable that the core holds, as the kernel's do
HOLE = 4 << 20


def core_of(exe: Path) -> bytes:
    """A core of a process that ran `exe`, with a large hole between two pages of data."""
    image = ProcessImage(
        threads=[thread(815)],
        mappings=[Mapping(start=BASE, end=BASE + HEADERS, prot=Prot.R, path=str(exe))],
        auxv=struct.pack("<4Q", 3, BASE + 64, 0, 0),  # AT_PHDR
    )
    size = HOLE + 2 * 4096
    layout = Layout([segment(BASE, HEADERS), segment(HEAP, size)], build_notes(image))
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    program, heap = (placed.offset for placed in layout.placed)
    data[program : program + HEADERS] = exe.read_bytes()[:HEADERS].ljust(HEADERS, b"\0")
    data[heap : heap + 4096] = b"a" * 4096
    data[-4096:] = b"z" * 4096
    return bytes(data)


CORE = core_of(PYTHON)
PLAIN = msgspec.structs.replace(
    SEGFAULT, exe=str(PYTHON), outcome=Outcome.COMPLETE, lost={}, container=False
)
COMPRESSED = msgspec.structs.replace(PLAIN, id="b" * 16, core="core.zst")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with the same core twice: plain and compressed."""
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("TMPDIR", raising=False)
    with Store(tmp_path / "store", create=True) as store:
        store.put(PLAIN)
        store.put(COMPRESSED)
        with open(store.folder(PLAIN.id) / "core", "wb") as plain:
            write_sparse(plain.fileno(), CORE)
        with open(store.folder(COMPRESSED.id) / "core.zst", "wb") as compressed:
            writer = ZstdWriter(compressed.fileno())
            writer.init(WriterParams(size=len(CORE)))
            writer.write(CORE, 0)
            writer.close()
        yield store


def write_sparse(fd: int, data: bytes) -> None:
    os.ftruncate(fd, len(data))
    for at in range(0, len(data), 4096):
        if any(data[at : at + 4096]):
            os.pwrite(fd, data[at : at + 4096], at)


def run(
    *words: str, program: Sequence[str] = ("-m", "collector"), **how: object
) -> tuple[int, bytes, str]:
    command = [sys.executable, *program, *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, **how)  # type: ignore[call-overload]
    return found.returncode, found.stdout, found.stderr.decode()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


BOTH = pytest.mark.parametrize("record", [PLAIN, COMPRESSED], ids=["plain", "zst"])


@BOTH
def test_core_file_is_equal_sparse_and_private(
    store: Store, tmp_path: Path, record: Record
) -> None:
    out = tmp_path / "out"

    assert run("core", record.id, "-o", str(out)) == (0, b"", "")

    found = out.stat()
    assert out.read_bytes() == CORE
    assert stat.filemode(found.st_mode) == "-rw-------"
    assert found.st_blocks * 512 < HOLE / 2
    assert files(tmp_path) == ["out", "store"]


@BOTH
def test_core_goes_into_a_pipe(store: Store, record: Record) -> None:
    assert run("core", record.id) == (0, CORE, "")


@BOTH
def test_core_is_redirected_to_a_file(store: Store, tmp_path: Path, record: Record) -> None:
    with open(tmp_path / "out", "wb") as out:
        command = [sys.executable, "-m", "collector", "core", record.id]
        subprocess.run(command, cwd=ROOT, stdout=out, check=True)

    assert (tmp_path / "out").read_bytes() == CORE


def test_existing_file_is_replaced_only_by_force(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")

    assert run("core", "-o", str(out)) == (
        2,
        b"",
        f"coreward: {out}: exists; --force replaces it\n",
    )
    assert out.read_text() == "mine"
    assert run("core", "-o", str(out), "--force") == (0, b"", "")
    assert out.read_bytes() == CORE


def test_terminal_gets_no_core(store: Store) -> None:
    ours, terminal = os.openpty()
    command = [sys.executable, "-m", "collector", "core"]
    found = subprocess.run(command, cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE, check=False)
    os.close(terminal)
    os.close(ours)
    assert (found.returncode, found.stderr) == (
        2,
        b"coreward: a core is not for a terminal: name a file with -o FILE, or use a pipe\n",
    )


@BOTH
def test_full_disk_leaves_no_file(store: Store, tmp_path: Path, record: Record) -> None:
    # GIVEN no room for the whole core, and a device that is full
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    # THEN neither works, and nothing is left
    out = tmp_path / "out"
    assert run("core", record.id, "-o", str(out), preexec_fn=limit) == (
        1,
        b"",
        f"coreward: {out}: cannot be written: File too large\n",
    )
    assert run("core", record.id, "-o", "/dev/full") == (
        1,
        b"",
        "coreward: /dev/full: cannot be written: No space left on device\n",
    )
    assert files(tmp_path) == ["store"]
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_incomplete_core_is_said_to_be(store: Store) -> None:
    store.put(
        msgspec.structs.replace(PLAIN, outcome=Outcome.TRUNCATED, lost={"core": "memory.max"})
    )

    assert run("core", PLAIN.id) == (
        0,
        CORE,
        "coreward: this core is truncated: memory.max\n",
    )


def test_there_is_no_core(store: Store) -> None:
    store.put(numbered(1, lost={"core": "rule `quiet` asks\nfor a record"}))
    (store.folder(PLAIN.id) / "core").unlink()

    assert run("core", numbered(1).id)[2] == (
        f"coreward: record {numbered(1).id} has no core: rule `quiet` asks\\nfor a record\n"
    )
    assert run("core", PLAIN.id)[2] == (
        f"coreward: record {PLAIN.id}: its core (core) is gone from the store; "
        f"`coreward info {PLAIN.id}` tells what is known\n"
    )


# ------------------------------------------------------------------------------------- debug


@pytest.fixture
def gdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gdb that prints its arguments, copies the core it was given to `seen`, and returns 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    gdb = folder / "gdb"
    gdb.write_text(
        "#!/bin/sh\n"
        'for word; do echo "$word"; case $word in --core=*) core=${word#--core=};; esac; done\n'
        f'cp "$core" {tmp_path}/seen\n'
        "exit 7\n"
    )
    gdb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return gdb


def test_debug_gives_gdb_the_executable_and_the_core(
    store: Store, gdb: Path, tmp_path: Path
) -> None:
    core = store.folder(PLAIN.id) / "core"

    assert run("debug", PLAIN.id, "--", "-batch", "-ex", "bt") == (
        7,
        f"--exec={PYTHON}\n--symbols={PYTHON}\n--core={core}\n-batch\n-ex\nbt\n".encode(),
        "",
    )


# A host where no file system can be mounted: test_mount.py of the system tests has the other.
WITHOUT_FUSE = """
import sys
from collector.cli import main
from collector.mount import private
def refuse(core):
    raise private.NotMounted("no FUSE here")
private.mounted = refuse
sys.exit(main(sys.argv[1:]))
"""


def test_debug_decompresses_and_cleans_up_where_nothing_can_be_mounted(
    store: Store, gdb: Path, tmp_path: Path
) -> None:
    status, out, err = run("debug", COMPRESSED.id, program=("-c", WITHOUT_FUSE))

    assert (status, err) == (7, "")
    assert (tmp_path / "seen").read_bytes() == CORE
    core = Path(out.decode().splitlines()[2].removeprefix("--core="))
    assert core.parent == store.folder(COMPRESSED.id)
    assert files(core.parent) == ["core.zst", "record.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_debug_cleans_up_when_it_is_stopped(store: Store, gdb: Path, number: int) -> None:
    # GIVEN gdb running on a decompressed core; it ends when its input does
    gdb.write_text("#!/bin/sh\necho started\nread line\necho got $line\n")
    folder = store.folder(COMPRESSED.id)
    command = [sys.executable, "-c", WITHOUT_FUSE, "debug", COMPRESSED.id]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert len(files(folder)) == 3
    # AND an agent that starts meanwhile does not take the core away
    assert store.clean_partial() == 0

    # WHEN it is told to end; an interrupt is for gdb alone
    process.send_signal(number)
    out, _ = process.communicate("quit\n")

    # THEN
    assert files(folder) == ["core.zst", "record.json"]
    if number == signal.SIGINT:
        assert (process.returncode, out) == (0, "got quit\n")
    else:
        assert process.returncode == 128 + signal.SIGTERM


def test_debug_does_not_believe_another_executable(store: Store, gdb: Path, tmp_path: Path) -> None:
    other = Path("/bin/sh").resolve()
    gone = tmp_path / "ev\nil"
    core = store.folder(PLAIN.id) / "core"

    store.put(msgspec.structs.replace(PLAIN, exe=str(other), container=True))
    assert run("debug", PLAIN.id) == (
        7,
        f"--core={core}\n".encode(),
        f"coreward: {other}: is not what died (the process was in a container): its build-id is "
        f"{build_id_of(other)}, the core's {build_id_of(PYTHON)}; gdb gets no executable "
        "(-- --exec=FILE names one)\n",
    )
    store.put(msgspec.structs.replace(PLAIN, exe=str(gone)))
    assert run("debug", PLAIN.id)[2] == (
        f"coreward: {tmp_path}/ev\\nil: No such file or directory; gdb gets no executable\n"
    )
    os.mkfifo(gone)
    assert run("debug", PLAIN.id)[2] == (
        f"coreward: {tmp_path}/ev\\nil: not a regular file; gdb gets no executable\n"
    )


def test_debug_without_gdb(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run("debug") == (
        1,
        b"",
        "coreward: gdb is not installed: it is in the package `gdb` (apt-get install gdb, dnf "
        "install gdb)\n",
    )
