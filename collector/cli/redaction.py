"""What the configuration wants redacted of a process that goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from collector.cli import DEFAULT_CONFIG
from collector.redact.types import Redact

RedactionOf = Callable[[int], Redact]  # of a pid


def redaction_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"whose `redact` rules hold (default: {DEFAULT_CONFIG}, if it is there)",
    )
    parser.add_argument("--unredacted", action="store_true", help="whatever these rules say")


def redaction(args: argparse.Namespace) -> RedactionOf:
    """By the configuration that the arguments name. PolicyError if that is wrong."""
    if args.unredacted:
        return lambda _: Redact()
    return redaction_by(args.config)


def redaction_by(config: Path | None = None) -> RedactionOf:
    """By this configuration, or the usual one. PolicyError if that is wrong.

    A user who may not read the usual one has his own processes without redaction, and is told.
    """
    if config is None and not DEFAULT_CONFIG.exists():
        return lambda _: Redact()
    if config is None and not _may_read(DEFAULT_CONFIG):
        print(f"coreward: {DEFAULT_CONFIG} cannot be read: nothing is redacted", file=sys.stderr)
        return lambda _: Redact()
    from collector.policy.facts import facts_of_living  # noqa: PLC0415 - few hosts have one
    from collector.policy.load import load  # noqa: PLC0415
    from collector.policy.match import redacts_of_living  # noqa: PLC0415

    policy = load(config or DEFAULT_CONFIG)
    return lambda pid: redacts_of_living(policy, facts_of_living(pid, policy.kubernetes.root))


def _may_read(path: Path) -> bool:
    try:
        path.open("rb").close()
    except PermissionError:
        return False
    return True
