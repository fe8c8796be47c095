"""What `deploy/` says must be true of the program."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import yaml

from collector.cli import load
from tests.metrics_document import full

ROOT = Path(__file__).resolve().parents[2]


def test_alerts_use_metrics_that_exist() -> None:
    names = {metric.name for metric in full().registry.collect()}
    document = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        for used in re.findall(r"coreward_\w+", rule["expr"]):
            assert re.sub(r"_(total|bucket|count|sum|info)$", "", used) in names, used


def test_the_unit_calls_verbs_that_take_its_arguments() -> None:
    unit = (ROOT / "deploy" / "systemd" / "coreward.service").read_text()
    commands = re.findall(r"^Exec(?:Start|StopPost)=/usr/bin/coreward (.*)$", unit, re.MULTILINE)
    assert commands == ["run --config /etc/coreward/coreward.yaml", "doctor --restore"]
    for command in commands:
        verb, *arguments = shlex.split(command)
        parser = argparse.ArgumentParser(exit_on_error=False)
        load(verb).arguments(parser)
        assert parser.parse_args(arguments) is not None
