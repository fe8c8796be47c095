"""Bundles of strangers: what they may not do, and what is said."""

from __future__ import annotations

import fcntl
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from collector.bundle.format import BundledFile, BundledModule, Manifest
from collector.bundle.sparse import end, padding, plain_head, sparse_head
from collector.bundle.unpack import Unpacked, open_bundle, unpack
from collector.cli import debugger, main
from collector.errors import BundleError, CorewardError

ID = "0123456789abcdef"
FILES = {"record.json": b"{}", "core": b"c" * 1000, "sysroot/lib/a.so": b"a" * 700}
Member = tuple[str, bytes]


def manifest(files: dict[str, bytes] = FILES, **more: Any) -> bytes:
    given = {
        "format": 1,
        "coreward": "0",
        "id": ID,
        "files": [{"name": name, "size": len(data)} for name, data in files.items()],
        "modules": [],
        **more,
    }
    return msgspec.json.encode(given)


def listing(files: Iterable[tuple[str, int, str | None]]) -> bytes:
    """A manifest that tells other sizes than files have, or build-ids."""
    listed = [
        BundledFile(name=name, size=size, build_id=build_id) for name, size, build_id in files
    ]
    return msgspec.json.encode(Manifest(format=1, coreward="0", id=ID, files=listed, modules=[]))


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info.tobuf(tarfile.PAX_FORMAT) + data + padding(len(data))


def archive(about: bytes, parts: Sequence[bytes] | None = None) -> bytes:
    if parts is None:
        parts = [member(*one) for one in FILES.items()]
    return b"".join((member("manifest.json", about), *parts, end(0)))


def opened(content: bytes, folder: Path) -> Unpacked:
    bundle = folder / "hostile.tar.zst"
    bundle.write_bytes(zstandard.compress(content))
    (folder / "out").mkdir()
    return unpack(bundle, open_bundle(bundle), folder / "out", whole=True)


def test_a_good_one_opens(tmp_path: Path) -> None:
    found = opened(archive(manifest()), tmp_path)
    assert {name: found.place(name).read_bytes() for name in FILES} == FILES


def renamed(name: str) -> Callable[[], bytes]:
    return lambda: archive(manifest({**FILES, name: b""}), [*map_(FILES), member(name, b"")])


def map_(files: dict[str, bytes]) -> list[bytes]:
    return [member(*one) for one in files.items()]


def with_module(**fields: object) -> Callable[[], bytes]:
    module = {"path": "/lib/a.so", "start": 0, "end": 1, "file": "sysroot/lib/a.so", **fields}
    return lambda: archive(manifest(modules=[module]))


def instead(part: bytes) -> Callable[[], bytes]:
    """Another member where the library is."""
    return lambda: archive(manifest(), [*map_(FILES)[:2], part])


def endless_names() -> bytes:
    """A member whose extended header has 8 MiB."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 8 << 20
    return archive(manifest(), [head.tobuf() + bytes(8 << 20)])


def endless_map() -> bytes:
    """A core with a map of a billion parts."""
    head = sparse_head("core", 1000, [(0, 10)], 0)
    head = head[:-512] + b"1000000000\n".ljust(512, b"1") + b"1\n" * (1 << 20)
    return archive(manifest(), [*map_(FILES)[:1], head])


def heads_of_heads() -> bytes:
    """A member with a thousand extended headers, each before the next."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 11
    one = head.tobuf() + b"11 path=ab\n" + padding(11)
    return archive(manifest(), [*map_(FILES)[:1], one * 1000, member("core", FILES["core"])])


def cut_off_map() -> bytes:
    """A core with GNU's old map of holes, which is to go on, and does not."""
    head = bytearray(tarfile.TarInfo("core").tobuf(tarfile.GNU_FORMAT))
    head[156:157], head[482] = tarfile.GNUTYPE_SPARSE, 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return member("manifest.json", manifest()) + map_(FILES)[0] + bytes(head)


def backwards() -> bytes:
    head = sparse_head("core", 1000, [(500, 510), (0, 10)], 0)
    return archive(manifest(), [*map_(FILES)[:1], head + bytes(20) + padding(20)])


def many_values() -> bytes:
    files = {**FILES, "record.json": b'{"lost":{%s"":""}}' % (b'"":"",' * (1 << 20))}
    return archive(manifest(files), map_(files))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (renamed("sysroot/../../etc/passwd"), "no name for a file of a bundle"),
    "dot": (renamed("sysroot/./x"), "no name"),
    "twice": (renamed("sysroot//x"), "no name"),
    "absolute": (renamed("/etc/passwd"), "no name"),
    "beside": (renamed("index.db"), "no name"),
    "control": (renamed("sysroot/a\x1bb"), "no name"),
    "long step": (renamed(f"sysroot/{'x' * 256}"), "no name"),
    "link name": (with_module(names=["/../../x"]), "no name of a module"),
    "unknown file": (with_module(file="sysroot/other"), "is not in the archive"),
    "core as a module": (with_module(file="core"), "is not in the archive"),
    "id": (lambda: archive(manifest(id="../../../etc0000")), "its id is none"),
    "negative": (
        lambda: archive(listing((name, -1, None) for name in FILES)),
        "a file of -1 bytes",
    ),
    "no core": (lambda: archive(manifest({"record.json": b""})), "no record, or no core"),
    "symbolic link": (
        instead(member("sysroot/lib/a.so", b"", tarfile.SYMTYPE, "/etc/passwd")),
        "with 0 comes",
    ),
    "hard link": (
        lambda: archive(
            manifest({**FILES, "sysroot/lib/a.so": b""}),
            [*map_(FILES)[:2], member("sysroot/lib/a.so", b"", tarfile.LNKTYPE, "core")],
        ),
        "is no regular file",
    ),
    "device": (
        lambda: archive(
            manifest({**FILES, "sysroot/lib/a.so": b""}),
            [*map_(FILES)[:2], member("sysroot/lib/a.so", b"", tarfile.CHRTYPE)],
        ),
        "is no regular file",
    ),
    "another size": (instead(member("sysroot/lib/a.so", b"a" * 701)), "with 701 comes"),
    "another member": (instead(member("sysroot/lib/b.so", b"a" * 700)), "with 700 comes"),
    "more than the disk": (
        lambda: archive(listing([("record.json", 1, None), ("core.zst", 1 << 60, None)])),
        "TMPDIR may name a place with more",
    ),
    "a large record": (
        lambda: archive(listing([("record.json", 17 << 20, None), ("core", 0, None)])),
        "a record of 17 MiB; it may have 16",
    ),
    "a record of many values": (many_values, "record.json is made to fill memory"),
    "a manifest of many values": (
        lambda: archive(manifest(names=[0] * (1 << 20))),
        "manifest.json is made to fill memory",
    ),
    "file as a folder": (renamed("sysroot/lib/a.so/b"), "Not a directory|File exists"),
    "endless names": (endless_names, "endless heads"),
    "endless map": (endless_map, "endless heads"),
    "heads of heads": (heads_of_heads, "damaged: maximum recursion"),
    "map that is cut off": (cut_off_map, "no bundle of coreward's, or damaged"),
    "map that goes back": (backwards, "a map of holes that is impossible"),
    "build-id": (
        lambda: archive(
            listing((n, len(d), "ab" * 20 if "lib" in n else None) for n, d in FILES.items())
        ),
        "not an executable",
    ),
    "cut off": (lambda: archive(manifest())[:3000], "cut off|damaged"),
    "no manifest": (lambda: archive(b"")[512:], "does not begin with|damaged"),
    "not JSON": (lambda: archive(b"{"), "manifest.json is damaged"),
    "deep JSON": (lambda: archive(b"[" * 100_000), "manifest.json is damaged"),
    "no archive": (lambda: b"text" * 1000, "no bundle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_nothing_is_made_outside(name: str, tmp_path: Path) -> None:
    make, why = HOSTILE[name]
    with pytest.raises((BundleError, OSError), match=why):
        opened(make(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.tar.zst", "out"}
    assert all(path.is_dir() or path.is_file() for path in (tmp_path / "out").rglob("*"))
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_the_verb_says_it_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bundle = tmp_path / "b.tar.zst"
    cases = {
        zstandard.compress(HOSTILE["up"][0]()): "no name for a file",
        zstandard.compress(HOSTILE["file as a folder"][0]()): "not unpacked",
        b"\x7fELF": "no bundle, but an ELF file; a debugger takes it as it is",
        b"text": "`coreward export ID --bundle -o FILE` makes one",
        b"\x28\xb5\x2f\xfdtext": "damaged",
    }
    for content, why in cases.items():
        bundle.write_bytes(content)
        assert main(["info", str(bundle)]) in (0, 1)  # (it reads no more than the record)
        assert main(["debug", str(bundle)]) == 1
        said = capsys.readouterr().err.splitlines()
        assert why in said[-1] and said[-1].startswith(f"coreward: {bundle}: ")
        assert list(tmp_path.iterdir()) == [bundle]
    assert main(["debug", str(tmp_path / "none.zst")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_it_is_opened_once(tmp_path: Path) -> None:
    # GIVEN a bundle whose name means another file as soon as it is open
    bundle, other = tmp_path / "b.tar.zst", tmp_path / "other"
    bundle.write_bytes(zstandard.compress(archive(manifest())))
    other.write_bytes(b"\x7fELF")
    fd = open_bundle(bundle)
    other.rename(bundle)
    # THEN what was opened is unpacked
    (tmp_path / "out").mkdir()
    assert unpack(bundle, fd, tmp_path / "out", whole=True).manifest.id == ID
    # AND a pipe keeps nobody waiting
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="pipe: not a file"):
        open_bundle(tmp_path / "pipe")


def test_what_a_killed_verb_has_left_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # GIVEN folders of a process that was killed, and of one that goes on; a link
    for name in ("left", "used"):
        (tmp_path / f"coreward-bundle-{name}" / "store").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "coreward-bundle-link").symlink_to(tmp_path / "kept")
    used = os.open(tmp_path / "coreward-bundle-used", os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_EX)
    # WHEN another bundle is looked at
    bundle = tmp_path / "b.tar.zst"
    bundle.write_bytes(zstandard.compress(archive(manifest())))
    assert main(["info", str(bundle)]) == 1
    os.close(used)
    # THEN only what nobody holds is gone
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"coreward-bundle-used", "coreward-bundle-link", "kept", "b.tar.zst"}


def test_further_names_never_replace_files(tmp_path: Path) -> None:
    # GIVEN a module that is also known by names of another file and of a folder, and by a new one
    files = {**FILES, "sysroot/usr/b.so": b"b" * 10}
    module = BundledModule(
        path="/lib/a.so",
        start=0,
        end=1,
        file="sysroot/lib/a.so",
        names=["/usr/b.so", "/usr", "/usr/b.so/c", "/lib64/a.so.1"],
    )
    found = opened(
        archive(manifest(files, modules=[msgspec.to_builtins(module)]), map_(files)), tmp_path
    )
    # THEN only the new one is made
    assert (found.sysroot / "lib64/a.so.1").read_bytes() == FILES["sysroot/lib/a.so"]
    assert (found.sysroot / "usr/b.so").read_bytes() == b"b" * 10


def test_gdb_runs_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debugger, "find", lambda name: f"/bin/{name}")
    # GIVEN a program whose name is a command of gdb's
    name = 'sysroot/x" -ex !id'
    about = Manifest(
        format=1,
        coreward="0",
        id=ID,
        files=[BundledFile(name=name, size=0)],
        modules=[BundledModule(path="/x", start=0, end=1, main=True, file=name)],
    )
    bundle = Unpacked(tmp_path / "b.zst", about, tmp_path)
    # THEN gdb loads no scripts, whatever its own settings are, and is told a plain name
    words = debugger.of_bundle("gdb", bundle, tmp_path / "core", ["-batch"])
    root = tmp_path / "sysroot"
    assert words == [
        "/bin/gdb",
        *("-ex", "set auto-load off"),
        *("-ex", f"set sysroot {root}"),
        *("-ex", f"set solib-search-path {root}"),
        *("-ex", f"set debug-file-directory {root}/usr/lib/debug:/usr/lib/debug"),
        *("-ex", f"file {tmp_path}/program"),
        *("-ex", f"core-file {tmp_path}/core"),
        "-batch",
    ]
    assert (tmp_path / "program").readlink() == tmp_path / name
    # AND a folder that it would not understand is refused
    with pytest.raises(CorewardError, match="have TMPDIR name another"):
        debugger.of_bundle("gdb", Unpacked(tmp_path, about, tmp_path / "a b"), tmp_path, [])


def test_all_of_it_can_be_read_by_tarfile() -> None:
    """(so that the archives above are what they seem)"""
    with tarfile.open(fileobj=io.BytesIO(archive(manifest()))) as tar:
        assert tar.getnames() == ["manifest.json", *FILES]
    assert plain_head("a", 5, 0)[:1] == b"a"
