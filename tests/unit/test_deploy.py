"""What `deploy/` says must be true of the program."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
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
