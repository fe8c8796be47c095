"""Debian's kernels, made ready to boot: downloaded, unpacked and cached, never installed.

A cached kernel is the folder CACHE/VERSION: the ELF file that is booted, its types (BTF), the few
modules that the guest needs to reach this machine's files, and the initial RAM disk. A folder
that has its name is complete. A kernel stays what it was when it was first fetched; `make clean`
forgets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import unpack
from tests.kernels.unpack import KernelError

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "kernels"

# Name -> Debian's meta package, which depends on the package of the present version
KERNELS = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}

# What the guest loads before it has a root file system. A change here fetches the kernels anew.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng")

# Program -> Debian package
_TOOLS = {
    "apt-get": "apt",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}


@dataclass(frozen=True)
class Image:
    """A kernel that can be booted."""

    name: str  # of KERNELS
    version: str  # as `uname -r` says it
    kernel: Path  # ELF; it starts faster than the vmlinuz, which would unpack it in the guest
    btf: Path  # its types
    initrd: Path


def tool(name: str) -> str:
    """The path of a program. KernelError names the Debian package if it is missing."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if not found:
        raise KernelError(f"{name} is missing: install the Debian package {_TOOLS[name]}")
    return found


def fetch(name: str, cache: Path = CACHE) -> Image:
    """The kernel of this name (see KERNELS); needs the network once, then only the cache.

    Several processes may ask at once: the first one downloads, the others wait.
    """
    if name not in KERNELS:
        raise KernelError(f"no kernel is named {name}: there are {', '.join(KERNELS)}")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        folder = _cached(name, cache) or _make(name, cache)
        return Image(name, folder.name, folder / "vmlinux", folder / "btf", _initrd(folder))


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time; what a killed one left half made is removed."""
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for partial in cache.glob(".partial-*"):
            # A program that the killed one had started may still write: the next one tries again
            shutil.rmtree(partial, ignore_errors=True)
        yield


def _cached(name: str, cache: Path) -> Path | None:
    for folder in sorted(cache.glob(f"{name}.*")):
        if (folder / "recipe").read_text() == _recipe():
            return folder
        shutil.rmtree(folder)
    return None


def _recipe() -> str:
    return "\n".join(MODULES) + "\n"


def _make(name: str, cache: Path) -> Path:
    """Download and unpack; the folder gets its name when it is complete."""
    package, deb_of = _find_package(name), f"kernel {name}"
    version = package.removeprefix("linux-image-")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as work:
        tree, made = Path(work, "tree"), Path(work, "made")
        _download(package, Path(work))
        for deb in Path(work).glob("*.deb"):
            _run([tool("dpkg"), "-x", str(deb), str(tree)], f"unpack {deb_of}")
        _run([tool("depmod"), "-b", str(tree), version], f"list the modules of {deb_of}")
        made.mkdir()
        (made / "recipe").write_text(_recipe())
        vmlinuz = tree / "boot" / f"vmlinuz-{version}"
        kernel = unpack.vmlinux(vmlinuz.read_bytes(), vmlinuz.name)
        (made / "vmlinux").write_bytes(kernel)
        (made / "btf").write_bytes(unpack.types(kernel, vmlinuz.name))
        _keep_modules(tree / "lib" / "modules" / version, made / "modules")
        return made.rename(cache / version)


def _keep_modules(source: Path, target: Path) -> None:
    """Unpack what the guest needs; the file `order` lists it in the order to load."""
    target.mkdir()
    texts = [(source / name).read_text() for name in ("modules.dep", "modules.builtin")]
    order = unpack.load_order(texts[0], texts[1], MODULES)
    names = [f"{unpack.module_name(path)}.ko" for path in order]
    for path, name in zip(order, names, strict=True):
        (target / name).write_bytes(unpack.decompress((source / path).read_bytes(), path))
    (target / "order").write_text("".join(f"{name}\n" for name in names))


def _find_package(name: str) -> str:
    """The concrete package of a kernel. The package list is updated only if it lacks it."""
    meta = KERNELS[name]
    found = _dependency(meta)
    if found is None:
        _update()
        found = _dependency(meta)
    if found is None:
        raise KernelError(f"apt has no package {meta}: kernel {name} is in Debian 12's archives")
    if not found.startswith(f"linux-image-{name}."):
        raise KernelError(f"{meta} is {found} here, not a kernel {name}: that is in Debian 12")
    return found


def _dependency(meta: str) -> str | None:
    """The package linux-image-VERSION that a meta package depends on; None if apt has none."""
    told = subprocess.run(
        ["apt-cache", "depends", meta], check=False, capture_output=True, text=True
    )
    for line in told.stdout.splitlines():
        word = line.strip().removeprefix("Depends: ")
        if word.startswith("linux-image-") and word != line.strip():
            return word
    return None


def _update() -> None:
    _run([tool("apt-get"), "-qq", "update"], "update apt's package list")


def _download(package: str, folder: Path) -> None:
    # As root, because apt's own user may not write to the folder
    command = [tool("apt-get"), "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    try:
        _run(command, f"download {package}", folder)
    except KernelError:  # the list is out of date: the archive has a newer revision
        _update()
        _run(command, f"download {package}", folder)


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise KernelError(f"cannot {what}: {said[-1]}")


def _initrd(folder: Path) -> Path:
    """The initial RAM disk: busybox, the modules and `init`; made anew if one of them changes.

    It is not compressed: the guest would take longer to unpack it than to read it.
    """
    busybox, init = Path(tool("busybox")), HERE / "init"
    digest = hashlib.sha256(busybox.read_bytes() + init.read_bytes()).hexdigest()
    target = folder / f"initrd-{digest[:12]}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as work:
        tree = Path(work, "tree")
        for name in ("bin", "proc", "sys", "dev", "base", "over", "under", "new", "boot"):
            (tree / name).mkdir(parents=True)
        shutil.copy(busybox, tree / "bin" / "busybox")
        shutil.copy(init, tree / "init")
        for program in ("bin/busybox", "init"):
            (tree / program).chmod(0o755)
        shutil.copytree(folder / "modules", tree / "modules")
        names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
        pack = [tool("cpio"), "-o", "-H", "newc", "-R", "0:0", "--quiet"]
        made = Path(work, "initrd")
        with made.open("wb") as output:
            done = subprocess.run(
                pack,
                cwd=tree,
                check=False,
                input=names.encode(),
                stdout=output,
                stderr=subprocess.PIPE,
            )
        if done.returncode:
            raise KernelError(f"cannot pack the initial RAM disk: {done.stderr.decode().strip()}")
        return made.rename(target)
