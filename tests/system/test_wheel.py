"""`make wheel`: what it makes works where there is neither a checkout nor a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.system.scratch import NAME
from tests.system.settings import kernel_settings
from tests.system.victims import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel's command, in an environment of its own."""
    subprocess.run(["make", "-s", "wheel"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (ROOT / "build" / "wheel").glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", wheel], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_all_that_was_built_is_found(installed: Path, tmp_path: Path) -> None:
    # GIVEN the installed command, and no compiler
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    places = ("--run-dir", str(tmp_path / "run"), "--pin-dir", f"/sys/fs/bpf/{NAME}")
    # WHEN it is asked what works here
    with kernel_settings(core_pattern="core", core_pipe_limit="0"):
        said = subprocess.run(
            [installed / "coreward", "doctor", "--json", *places],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    checks = {check["name"]: check for check in json.loads(said.stdout)}
    # THEN the objects load, the native part takes crashes over, and bcc has its sources
    for name in ("BPF, loader core", "BPF, loader bcc", "live processes", "hand-off by pipe"):
        assert checks[name]["ok"], checks[name]
    where = subprocess.run(
        [installed / "python", "-P", "-c", "import collector; print(collector.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    # AND the manual and completion of shells are where such an environment has them
    share = installed.parent / "share"
    for page in ("man/man1/coreward.1", "man/man5/coreward.yaml.5", "zsh/site-functions/_coreward"):
        assert (share / page).stat().st_size > 1000
