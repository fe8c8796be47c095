"""Which package an executable came with: by its own note, and by dpkg's lists in its root."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from collector.arch import elf as arch
from collector.circumstances import Package
from collector.explain.files import Root
from collector.explain.package import package_of

NOTE = b'{"type":"rpm","name":"shop","version":"2.3-1.fc40","architecture":"x86_64"}\0'


def elf(note: bytes, kind: int = 0xCAFE1A7E) -> bytes:
    """An ELF file of a header, one program header, and one note of owner FDO."""
    body = struct.pack("<III", 4, len(note), kind) + b"FDO\0" + note + bytes(-len(note) % 4)
    at = arch.EHDR.size + arch.PHDR.size
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, arch.EHDR.size, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", arch.PT_NOTE, 4, at, at, at, len(body), len(body), 4)
    return header + segment + body


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with dpkg's lists of three packages."""
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    installed = "Status: install ok installed\n"
    (tmp_path / "var/lib/dpkg/status").write_text(
        f"Package: coreutils\n{installed}Architecture: amd64\nVersion: 9.1-1\n"
        "Description: tools\n of all kinds: many\n\n"
        f"Package: libshop1\n{installed}Architecture: amd64\nMulti-Arch: same\nVersion: 2.0\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    (info / "coreutils.list").write_text("/.\n/bin\n/bin/sleep\n/usr/bin/env\n")
    (info / "libshop1:amd64.list").write_text("/usr/lib/shop/helper\n")
    (info / "gone.list").write_text("/usr/bin/gone\n")
    return tmp_path


def found(root: Path, path: str | None, exe: Path | None = None) -> Package | None:
    fd = os.open(root, os.O_PATH)
    try:
        return package_of(exe, Root(fd), path)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("/usr/bin/env", Package(name="coreutils", version="9.1-1", source="dpkg")),
        ("/usr/bin/sleep", Package(name="coreutils", version="9.1-1", source="dpkg")),
        ("/usr/lib/shop/helper", Package(name="libshop1", version="2.0", source="dpkg")),
        ("/usr/bin/gone", None),
        ("/usr/bin/en", None),
        ("/home/me/env", None),
        (None, None),
    ],
)
def test_a_path_that_a_package_has(root: Path, path: str | None, package: Package | None) -> None:
    assert found(root, path) == package


def test_the_file_itself_says_it_first(root: Path) -> None:
    (root / "env").write_bytes(elf(NOTE))
    expected = Package(name="shop", version="2.3-1.fc40", source="note")
    assert found(root, "/usr/bin/env", root / "env") == expected


@pytest.mark.parametrize(
    "file", [b"", b"\x7fELF", elf(b"no json"), elf(b'{"name": 3}'), elf(NOTE, 1), elf(NOTE)[:130]]
)
def test_a_file_that_says_nothing_of_use(root: Path, file: bytes) -> None:
    (root / "env").write_bytes(file)
    assert found(root, "/usr/bin/env", root / "env") == Package(
        name="coreutils", version="9.1-1", source="dpkg"
    )


def test_without_dpkg_there_is_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, "/usr/bin/env") is None
