"""Debian's promtool and prometheus, which `make unit` unpacks into build/prometheus."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "build" / "prometheus" / "prometheus"
RULES = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str | Path) -> str:
    """What it says; an AssertionError with that if it finds something wrong."""
    command = [PROMETHEUS.with_name("promtool"), *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def rules(name: str) -> list[dict[str, Any]]:
    """All rules of one file in deploy/prometheus."""
    document = yaml.safe_load((RULES / name).read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]
