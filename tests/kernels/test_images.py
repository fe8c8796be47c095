"""Kernels come from apt once, then from the cache; what is half made is never taken for whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import images
from tests.kernels.images import KERNELS, fetch, tool
from tests.kernels.unpack import KernelError


def _no_network(*_arguments: object) -> None:
    raise AssertionError("apt was asked")


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_complete_and_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = fetch(name)
    assert image.version.startswith(f"{name}.")
    assert image.kernel.read_bytes()[:4] == b"\x7fELF"
    assert image.btf.read_bytes()[:2] == b"\x9f\xeb"  # BTF_MAGIC
    modules = (image.kernel.parent / "modules" / "order").read_text().split()
    assert modules[-1] == "virtio_rng.ko"
    assert {"9p.ko", "9pnet_virtio.ko", "overlay.ko"} < set(modules)  # 6.12 has virtio_pci within
    size = sum(path.stat().st_size for path in image.kernel.parent.rglob("*") if path.is_file())
    assert size < 120 << 20
    monkeypatch.setattr(images, "_find_package", _no_network)
    assert fetch(name) == image


def test_a_fetch_that_fails_or_was_killed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / ".partial-killed" / "made"
    killed.mkdir(parents=True)

    def broken(_package: str, folder: Path) -> None:
        assert not killed.exists()
        (folder / "linux-image.deb").write_bytes(b"!<arch>\n")

    monkeypatch.setattr(images, "_find_package", lambda _name: "linux-image-6.1.0-9-amd64")
    monkeypatch.setattr(images, "_download", broken)
    with pytest.raises(KernelError, match=r"^cannot unpack kernel 6\.1: "):
        fetch("6.1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_kernel_with_other_modules_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "6.1.0-9-amd64"
    old.mkdir()
    (old / "recipe").write_text("9p\n")
    monkeypatch.setattr(images, "_find_package", _no_network)
    with pytest.raises(AssertionError, match="apt was asked"):
        fetch("6.1", tmp_path)
    assert not old.exists()


def test_a_package_that_apt_lacks_is_named_after_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = []
    monkeypatch.setitem(KERNELS, "6.1", "linux-image-there-is-none")
    monkeypatch.setattr(images, "_update", lambda: updates.append(True))
    with pytest.raises(KernelError, match=r"^apt has no package linux-image-there-is-none: .*$"):
        fetch("6.1", tmp_path)
    assert updates == [True]


def test_a_package_of_another_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_dependency", lambda _meta: "linux-image-6.12.9-amd64")
    with pytest.raises(KernelError, match=r"^linux-image-amd64 is linux-image-6\.12\.9-amd64 here"):
        fetch("6.1", tmp_path)


def test_a_kernel_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"^no kernel is named 5\.4: there are 6\.1, 6\.12$"):
        fetch("5.4", tmp_path)


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match=r"^qemu-system-x86_64 is missing: .* qemu-system-x86$"):
        tool("qemu-system-x86_64")
