"""What `deploy/` says must be true of the program."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from collector.cli import load

ROOT = Path(__file__).resolve().parents[2]


def test_the_unit_calls_verbs_that_take_its_arguments() -> None:
    unit = (ROOT / "deploy" / "systemd" / "coreward.service").read_text()
    commands = re.findall(r"^Exec(?:Start|StopPost)=/usr/bin/coreward (.*)$", unit, re.MULTILINE)
    assert commands == ["run --config /etc/coreward/coreward.yaml", "doctor --restore"]
    for command in commands:
        verb, *arguments = shlex.split(command)
        parser = argparse.ArgumentParser(exit_on_error=False)
        load(verb).arguments(parser)
        assert parser.parse_args(arguments) is not None
