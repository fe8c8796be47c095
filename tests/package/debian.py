"""A fresh Debian 12 below a folder, by debootstrap(8), made once and used again and again.

    with fresh() as debian:
        debian.run("apt-get", "install", "-y", "gdb")

What is changed in it lies in an overlay, and is gone afterwards. It shares the host's kernel, so
the path at which that looks for the agent's socket is the same inside and outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.system.victims import ROOT

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
CACHE = ROOT / "build" / "package"
RUN_DIR, PINS = Path("/run/coreward"), Path("/sys/fs/bpf/coreward")
_PACKAGES = "ca-certificates,init-system-helpers"
# what apt and dpkg note of themselves
_NOTES = ("var/lib/dpkg", "var/lib/apt", "var/cache", "var/log", "tmp", "run", "proc", "sys", "dev")


class Debian:
    """Its files are at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, status: int = 0) -> str:
        """What a command says inside, which must end with this status."""
        done = subprocess.run(
            self.inside(*command),
            capture_output=True,
            check=False,
            text=True,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def inside(self, *command: str) -> list[str]:
        """The command that runs this one inside."""
        return ["chroot", str(self.root), *command]

    def part_run_dir(self) -> None:
        """The agent's run directory is not the host's any more: it can be removed."""
        subprocess.run(["umount", str(self.root / "run/coreward")], check=True)

    def files(self) -> set[str]:
        """All paths, but for what apt and dpkg keep of their own, and what is mounted."""
        found: set[str] = set()
        for folder, names, files in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            names[:] = [name for name in names if str(here / name) not in _NOTES]
            found.update(str(here / name) for name in (*names, *files))
        return found


ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


def missing() -> str | None:
    """Why there can be no fresh Debian here."""
    if os.geteuid() != 0:
        return "needs root"
    for theirs in (PINS, *RUN_DIR.glob("*.sock"), *RUN_DIR.glob("*.json")):
        if theirs.exists():
            return f"{theirs} is that of an agent of this host"
    if not (CACHE / "base").is_dir():
        try:
            with urllib.request.urlopen(f"{MIRROR}/dists/{SUITE}/InRelease", timeout=10):
                pass
        except (OSError, urllib.error.URLError) as error:
            return f"no archive: {MIRROR}: {error}"
    return None


def _base() -> Path:
    """The files of a minimal system, with lists of the archive's packages."""
    base = CACHE / "base"
    if not base.is_dir():
        partial = CACHE / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        include = f"--include={_PACKAGES}"
        subprocess.run(
            ["debootstrap", "--variant=minbase", include, SUITE, str(partial), MIRROR],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        partial.rename(base)
    return base


@contextlib.contextmanager
def fresh() -> Iterator[Debian]:
    """What apt downloads is kept for the next time."""
    base = _base()
    archives = CACHE / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, contextlib.ExitStack() as mounts:
        upper, work, root = (Path(folder) / name for name in ("upper", "work", "root"))
        for one in (upper, work, root):
            one.mkdir()

        def mount(what: str, where: Path, *options: str) -> None:
            where.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", *options, what, str(where)], check=True)
            unmount = ["umount", "-q", "-l", str(where)]
            mounts.callback(subprocess.run, unmount, check=False)

        layers = f"lowerdir={base},upperdir={upper},workdir={work}"
        mount("overlay", root, "-t", "overlay", "-o", layers)
        mount("proc", root / "proc", "-t", "proc")
        mount("/sys", root / "sys", "--bind")
        mount("/sys/fs/bpf", root / "sys/fs/bpf", "--bind")
        mount("/dev", root / "dev", "--bind")
        # the kernel looks for the agent's socket where it is outside
        if not RUN_DIR.exists():
            RUN_DIR.mkdir(mode=0o700)
            mounts.callback(shutil.rmtree, RUN_DIR, ignore_errors=True)
        mount(str(RUN_DIR), root / "run/coreward", "--bind")
        mount(str(archives), root / "var/cache/apt/archives", "--bind")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        policy = root / "usr/sbin/policy-rc.d"  # as in a container: nothing is started
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        mounts.callback(_unpin)  # where a test has left its agent's
        yield Debian(root)


def _unpin() -> None:
    command = [sys.executable, "-m", "collector", "doctor", "--restore", "--unpin"]
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
