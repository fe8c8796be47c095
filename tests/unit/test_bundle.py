"""Bundles: what is in one, what is not and is said, and that it opens as what it was."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.bundle import format as bundles
from collector.bundle.format import BundledFile, BundledModule, Manifest, debug_member
from collector.bundle.linked import linked_names
from collector.bundle.modules import find_files
from collector.bundle.sparse import MAX_RUNS, end, few, padding, plain_head, sparse_head
from collector.bundle.unpack import open_bundle, unpack
from collector.cli import main
from collector.elfcore.reader import CoreFile
from collector.elfcore.zeros import data_runs
from collector.errors import CoreFormatError
from collector.explain import kept_threads
from collector.explain.run import REPORT
from collector.model import Outcome, Record
from collector.store.store import Store
from collector.watch import flight, kept
from tests.bundles import members, unpacked
from tests.unit.store_samples import SEGFAULT
from tests.unit.unrun import BASE, LIBRARY, Loaded, Unrun, compiled

PROGRAM = ".globl _start\n_start: ud2\n"
AT_PHDR, PHDRS_AT = 3, 64
HOLE = 4 << 20  # bytes

RECORD = msgspec.structs.replace(
    SEGFAULT, lost={}, outcome=Outcome.COMPLETE, container=False, age_s=None
)


class Case:
    """A record with a core of a program and a library, in a store."""

    def __init__(self, folder: Path, store: Store, built: Path) -> None:
        self.folder, self.store = folder, store
        self.program = shutil.copy(built / "prog", folder / "prog")
        self.library = shutil.copy(built / "lib one.so", folder / "lib one.so")
        process = Unrun(Loaded(self.program, BASE), Loaded(self.library, LIBRARY))
        process.area(0x1000_0000, b"a" * 4096 + bytes(HOLE) + b"z")
        process.thread(815, BASE, 0x7FFE00008000)
        store.put(RECORD)
        self.core = process.core(store.folder(RECORD.id), auxv=[(AT_PHDR, BASE + PHDRS_AT)])
        self.bundle = folder / "crash.tar.zst"

    def export(self) -> int:
        return main(["export", RECORD.id, "--bundle", "-o", str(self.bundle)])

    def manifest(self) -> Manifest:
        return bundles.parse(members(self.bundle)["manifest.json"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program and a library."""
    folder = tmp_path_factory.mktemp("built")
    compiled(folder, PROGRAM)
    compiled(folder, PROGRAM, "-shared", name="lib one.so")
    return folder


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path) -> Iterator[Case]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with Store(tmp_path / "store", create=True) as store:
        yield Case(tmp_path, store, built)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def build_id(path: Path) -> str:
    shown = subprocess.run(["readelf", "-n", path], check=True, capture_output=True, text=True)
    return shown.stdout.split("Build ID: ")[1].split()[0]


def test_all_of_it(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    # WHEN a death is exported
    assert case.export() == 0
    # THEN nothing is said in a pipe, and the file is its owner's
    assert capsys.readouterr() == ("", "")
    assert case.bundle.stat().st_mode & 0o777 == 0o600
    # AND it holds the record, the core and both objects as they are, after the manifest
    found = members(case.bundle)
    inside = {one: f"sysroot{one}" for one in (case.program, case.library)}
    assert list(found) == ["manifest.json", "record.json", "core", *inside.values()]
    assert msgspec.json.decode(found["record.json"], type=Record) == RECORD
    assert found["core"] == case.core.read_bytes()
    for path, name in inside.items():
        assert found[name] == path.read_bytes()
    # AND the manifest tells what is what
    program, library = case.manifest().modules
    assert program == BundledModule(
        path=str(case.program),
        start=BASE,
        end=program.end,
        build_id=build_id(case.program),
        main=True,
        verified=True,
        file=inside[case.program],
    )
    assert (library.main, library.verified, library.file) == (False, True, inside[case.library])
    # AND its holes take no room
    assert case.bundle.stat().st_size < 64 << 10
    assert len(unpacked(case.bundle)) < HOLE


def test_it_opens_as_what_it_was(case: Case) -> None:
    case.export()
    (case.folder / "out").mkdir()
    # WHEN it is unpacked
    found = unpack(case.bundle, open_bundle(case.bundle), case.folder / "out", whole=True)
    # THEN its files are those that went in, the core with its holes
    core = found.place("core")
    assert core.read_bytes() == case.core.read_bytes()
    assert core.stat().st_blocks * 512 < HOLE
    assert found.program() == found.sysroot / str(case.program)[1:]
    assert found.program().read_bytes() == case.program.read_bytes()
    with Store(found.store, create=False, readonly=True) as store:
        assert store.get(RECORD.id) == RECORD
        assert store.core_path(RECORD) == core
    # AND it is nobody else's
    assert {path.stat().st_mode & 0o77 for path in found.folder.rglob("*") if path.is_file()} == {0}


def test_what_is_not_there_is_said(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a library that was replaced by another one, and a program that is gone
    case.program.unlink()
    compiled(case.folder, PROGRAM + "nop\n", "-shared", name="lib one.so")
    # THEN neither is in the bundle
    assert case.export() == 0
    assert list(members(case.bundle)) == ["manifest.json", "record.json", "core"]
    program, library = case.manifest().modules
    assert (program.file, program.missing) == (None, "No such file or directory")
    why = "its file is another one than was mapped (build-id)"
    assert (library.file, library.missing) == (None, why)
    # AND it is said
    assert capsys.readouterr().err.splitlines() == [
        f"coreward: not in the bundle: {case.program}: No such file or directory",
        f"coreward: not in the bundle: {case.library}: {why}",
    ]


def test_files_of_another_root(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a process in a container, whose files are below another folder
    root = case.folder / "root"
    for path in (case.program, case.library):
        place = root / str(path)[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    words = ["export", RECORD.id, "--bundle", "-o", str(case.bundle)]
    assert main([*words, "--root", str(root)]) == 0
    program, library = case.manifest().modules
    assert (program.file, library.file) == (f"sysroot{case.program}", f"sysroot{case.library}")
    # AND one that is not there is said
    assert main([*words, "--force", "--root", str(root / "none")]) == 1
    assert f"{root}/none: cannot be looked into: No such file" in capsys.readouterr().err


def test_more_files_than_may_be_open(case: Case) -> None:
    with CoreFile(case.core) as core:
        before = open_files()
        with find_files(core, changed=0, most=65, root=Path("/")) as found:
            assert [module.missing for module in found.modules] == [
                None,
                "there are too many files: a higher limit (ulimit -n) takes more",
            ]
            assert open_files() == before + 1
        assert open_files() == before


def test_separate_debug_files_are_in_it(case: Case) -> None:
    # GIVEN a program that names a file with its debugging information
    debug = case.folder / ".debug" / "prog.debug"
    debug.parent.mkdir()
    for words in (
        ["--only-keep-debug", str(case.program), str(debug)],
        [f"--add-gnu-debuglink={debug}", str(case.program)],
    ):
        subprocess.run(["objcopy", *words], check=True)
    case.export()
    member = debug_member(build_id(case.program))
    assert case.manifest().modules[0].debug == [member]
    assert members(case.bundle)[member] == debug.read_bytes()


def test_what_lies_beside_the_record_is_in_it(case: Case) -> None:
    # (these are all the names that a store has)
    assert set(bundles.BESIDE) == {kept_threads.FILE, kept.FILE, flight.FILE, REPORT}
    (case.core.parent / kept_threads.FILE).write_bytes(kept_threads.packed([]))
    (case.core.parent / "other").write_bytes(b"not of the record")
    case.export()
    assert list(members(case.bundle))[:4] == ["manifest.json", "record.json", "threads.zst", "core"]


def test_verbs_take_it(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a bundle, and no store
    case.export()
    os.environ["COREWARD_STORE"] = "/nowhere"
    # WHEN it is looked at
    assert main(["info", str(case.bundle)]) == 0
    assert f"Death {RECORD.id}" in (shown := capsys.readouterr().out)
    assert f"{case.bundle}, " in shown
    assert main(["bt", str(case.bundle)]) == 0
    assert " in inner+" in capsys.readouterr().out
    # THEN nothing of it stays
    assert not list((case.folder / "tmp").iterdir())


def test_a_file_that_is_there_and_a_full_disk(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.bundle.write_text("mine")
    assert case.export() == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert case.bundle.read_text() == "mine"
    assert main(["export", "--bundle", "-o", str(case.bundle), "--force"]) == 0
    assert "core" in members(case.bundle)
    # AND what cannot be written is no bundle
    assert main(["export", "--bundle", "-o", "/dev/full"]) == 1
    assert "/dev/full: cannot be written: No space left on device" in capsys.readouterr().err
    assert {path.name for path in case.folder.glob(".tmp-*")} == set()


def test_a_file_that_becomes_shorter_ends_it(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plain_head

    def shrinking(name: str, size: int, time: int) -> bytes:
        if name.endswith("prog"):
            os.truncate(case.program, 100)
        return whole(name, size, time)

    monkeypatch.setattr("collector.bundle.write.plain_head", shrinking)
    assert case.export() == 1
    assert "prog: cannot be read: it became shorter" in capsys.readouterr().err
    assert not case.bundle.exists()


def test_gnu_tar_makes_the_same_of_a_file_with_holes(tmp_path: Path) -> None:
    # GIVEN a file that ends in a hole
    size, runs = 1 << 30, [(4096, 8192), (1 << 29, (1 << 29) + 10)]
    data = b"a" * 4096 + b"b" * 10
    archive = tmp_path / "a.tar"
    content = sparse_head("core", size, runs, 5) + data + padding(len(data))
    archive.write_bytes(content + end(len(content)))
    # WHEN tar(1) extracts it
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    with open(tmp_path / "core", "rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        assert next(data_runs(file.fileno(), size))[0] == 4096
        assert [os.pread(file.fileno(), stop - start, start) for start, stop in runs] == [
            data[:4096],
            data[4096:],
        ]
    # AND one with more data than the old format can count
    huge = sparse_head("core", 1 << 42, [(0, 1 << 40)], 5)
    with tarfile.open(fileobj=io.BytesIO(huge)) as tar:
        member = tar.next()
        assert member is not None
        assert (member.name, member.size) == ("core", 1 << 42)
        assert member.sparse == [(0, 1 << 40), (1 << 42, 0)]
        assert tar.offset == len(huge) + (1 << 40)


def test_the_smallest_holes_are_filled() -> None:
    runs = [(at * 100, at * 100 + 50 + at % 2) for at in range(MAX_RUNS + 10)]
    found = few(runs)
    assert len(found) == MAX_RUNS
    assert (found[0][0], found[-1][1]) == (runs[0][0], runs[-1][1])
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))
    assert few(runs[:5]) == runs[:5]


def test_names_of_the_dynamic_linker() -> None:
    # GIVEN a program whose linker knows two libraries, the second list entry leading back
    memory = bytearray(0x3000)

    def put(at: int, *words: int) -> None:
        memory[at : at + 8 * len(words)] = b"".join(word.to_bytes(8, "little") for word in words)

    def read(address: int, size: int) -> bytes:
        if not 0x10000 <= address <= address + size <= 0x10000 + len(memory):
            raise CoreFormatError("not there")
        return bytes(memory[address - 0x10000 :][:size])

    put(0x40, 6 | 4 << 32, 0x40, 0x40, 0, 0, 0, 0)  # PT_PHDR
    put(0x78, 2 | 4 << 32, 0x200, 0x200, 0, 0x20, 0x20, 0)  # PT_DYNAMIC
    put(0x200, 21, 0x10300, 0, 0)  # DT_DEBUG
    put(0x300, 1, 0x10400)
    put(0x400, 0, 0x12FFA, 0xAAAA, 0x10440)
    put(0x440, 0, 0x10500, 0xBBBB, 0x10400)
    memory[0x2FFA:0x3000] = b"/a.so\0"
    memory[0x500:0x506] = b"/b.so\0"
    auxv = b"".join(n.to_bytes(8, "little") for n in (3, 0x10040, 5, 2, 0, 0))
    # THEN both have their names, and it ends
    assert linked_names(auxv, read) == [(0xAAAA, "/a.so"), (0xBBBB, "/b.so")]
    # AND what cannot be read ends it
    put(0x440, 0, 0x99999, 0xBBBB, 0x10400)
    assert linked_names(auxv, read) == [(0xAAAA, "/a.so")]
    assert linked_names(auxv[:8], read) == []


def test_a_manifest_of_a_later_format_says_so() -> None:
    later = Manifest(
        format=2, coreward="9.1", id="x", files=[BundledFile(name="?", size=-1)], modules=[]
    )
    with pytest.raises(bundles.BundleError, match="its format is 2, and this version reads 1"):
        bundles.parse(msgspec.json.encode(later))
