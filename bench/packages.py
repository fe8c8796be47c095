"""Debian packages beside the project, not installed: they exclude each other in dpkg.

Downloaded by apt and unpacked into `build/peers/NAME`; what is there already is not fetched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.peers import Unavailable
from bench.programs import ROOT

PEERS = ROOT / "build" / "peers"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


def unpacked(name: str, *needs: str) -> Path:
    """The root of the unpacked package `name` and of the packages it needs. Raises Unavailable."""
    root = PEERS / name
    if root.is_dir():
        return root
    if shutil.which("apt-get") is None:
        raise Unavailable("needs Debian's apt-get to fetch the package")
    partial = root.with_suffix(".new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        # its own user could not write to a folder of ours, and would only say so
        options = ["-qq", "-o", "APT::Sandbox::User=root"]
        _run(["apt-get", *options, "download", name, *needs], partial)
        for file in partial.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(file), "."], partial)
            file.unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"its packages could not be fetched: {error}") from error
    partial.rename(root)
    return root


def version_of(name: str) -> str:
    """The version that apt would fetch."""
    command = ["apt-cache", "show", "--no-all-versions", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("Version: ")]
    return found[0].split()[1] if found else "unknown version"


def libraries(root: Path) -> str:
    """An LD_LIBRARY_PATH of the unpacked libraries."""
    found = [root / name for name in _LIBRARIES if (root / name).is_dir()]
    found += [folder / "systemd" for folder in found if (folder / "systemd").is_dir()]
    return ":".join(map(str, found))


def check_links(program: Path, root: Path) -> None:
    """Raises Unavailable if a library of `program` is missing."""
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries(root)}
    done = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False, env=environment
    )
    missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
    if done.returncode or missing:
        raise Unavailable(f"{program.name} does not run here: {', '.join(missing) or done.stderr}")


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
