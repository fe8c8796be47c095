"""The rules of signatures that a verb goes by: the built-in ones and those of the configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from collector.cli import DEFAULT_CONFIG
from collector.signature.rules import Rules, rules


def config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"whose `signature` rules hold (default: {DEFAULT_CONFIG}, if it is there)",
    )


def rules_in_force(args: argparse.Namespace) -> Rules:
    """PolicyError if the configuration is wrong."""
    config = args.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if config is None:
        return rules()
    from collector.policy.load import load  # noqa: PLC0415 (not before there is a file to read)

    return rules(load(config).signature)
