"""What `deploy/` says must be true of the program."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from collector.cli import load

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
EXPOSURE = 62  # of 100, `systemd-analyze security`; a service that says nothing has 96


def test_the_unit_calls_verbs_that_take_its_arguments() -> None:
    unit = (ROOT / "deploy" / "systemd" / "coreward.service").read_text()
    commands = re.findall(r"^Exec(?:Start|StopPost)=/usr/bin/coreward (.*)$", unit, re.MULTILINE)
    assert commands == [
        "run --config /etc/coreward/coreward.yaml",
        "doctor --restore --unless-restarted %n",
    ]
    for command in commands:
        verb, *arguments = shlex.split(command)
        parser = argparse.ArgumentParser(exit_on_error=False)
        load(verb).arguments(parser)
        assert parser.parse_args(arguments) is not None


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze(1) on the unit, with a program where its commands are."""
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, check=False, text=True, timeout=60
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_understands_the_unit_and_what_it_gives_up(tmp_path: Path) -> None:
    # GIVEN the unit, with a command that exists here
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace("/usr/bin/coreward", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    unit_file = tmp_path / "coreward.service"
    # THEN systemd has nothing to say about it
    verified = analyze("verify", "--man=no", str(unit_file))
    ours = [line for line in verified.stderr.splitlines() if "coreward" in line]
    assert (verified.returncode, ours) == (0, [])
    # AND its exposure is no higher than root over all processes needs
    judged = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", str(unit_file))
    assert judged.returncode == 0, judged.stdout


def test_documents_name_all_that_the_package_brings() -> None:
    # GIVEN the libraries that the package does not take from Debian
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[<>=]", one)[0] for one in project["dependencies"]}
    build = (ROOT / "deploy" / "debian" / "build").read_text()
    from_debian = re.search(r"^debian=\((.*?)\)", build, re.MULTILINE)
    assert from_debian is not None
    inside = sorted(names - set(from_debian[1].split()))
    # THEN its copyright names each of them with a licence, and so does the document on installing
    copyright_ = (ROOT / "deploy" / "debian" / "copyright").read_text()
    assert re.findall(r"([\w-]+) \([^)]+\)[,.]", copyright_) == inside
    install = (ROOT / "docs" / "install.md").read_text()
    told = re.search(r"from PyPI ([^.]*?), which", install)
    assert told is not None
    assert re.split(r",? and |,\s+", told[1].replace("\n", " ")) == inside
