"""How the command line names records: an ID, a filter, a moment.

Only words to values; what they select is the store's business.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from collector.errors import UsageError
from collector.model import Cause, SnapshotMode
from collector.policy.units import parse_duration, parse_signal, quote
from collector.store.filter import Filter
from collector.store.store import LATEST, Store

_T = TypeVar("_T")
DEFAULT_RUN_DIR = Path("/run/coreward")


def id_argument(parser: argparse.ArgumentParser, *, or_bundle: bool = False) -> None:
    """Declare `[ID]` as `args.id`. or_bundle: it may name a file instead; see `opened`."""
    parser.add_argument(
        "id",
        nargs="?",
        default=LATEST,
        metavar="ID|FILE" if or_bundle else "ID",
        help="`latest` (default), or the first digits of an ID"
        + ("; or a bundle, as `export --bundle` makes it" if or_bundle else ""),
    )


def mode_argument(parser: argparse.ArgumentParser, how: str) -> None:
    """Declare `--mode`: how a process that goes on is looked at. how: the help."""
    modes = [mode.value for mode in SnapshotMode]
    parser.add_argument("--mode", choices=modes, default=SnapshotMode.AUTO.value, help=how)


def json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the filters; `filter_of` reads them."""
    when = "an age (30m, 2h, 7d), or a local time (2026-11-21, 2026-11-21T10:00)"
    causes = ", ".join(Cause)
    parser.add_argument("--since", metavar="WHEN", help=f"deaths from then on: {when}")
    parser.add_argument("--until", metavar="WHEN", help="deaths before then: the same")
    parser.add_argument("--cause", choices=[c.value for c in Cause], metavar="CAUSE", help=causes)
    parser.add_argument("--signal", metavar="SIG", help="SIGSEGV, SEGV or 11")
    parser.add_argument("--comm", metavar="GLOB", help="name of the process")
    parser.add_argument("--exe", metavar="GLOB", help="path of its executable")
    parser.add_argument("--unit", metavar="GLOB", help="systemd unit")
    parser.add_argument("--namespace", metavar="GLOB", help="of its pod of Kubernetes")
    parser.add_argument("--pod", metavar="GLOB", help="name of that pod")
    parser.add_argument("--kept", action="store_true", help="those that `coreward keep` has marked")


def filter_of(args: argparse.Namespace, now: datetime.datetime) -> Filter:
    """The filter that the arguments describe. UsageError if a value makes no sense."""

    def when(option: str, text: str | None) -> datetime.datetime | None:
        return None if text is None else parsed(option, lambda word: moment(word, now), text)

    return Filter(
        since=when("--since", args.since),
        until=when("--until", args.until),
        cause=None if args.cause is None else Cause(args.cause),
        signal=None if args.signal is None else parsed("--signal", parse_signal, args.signal),
        comm=args.comm,
        exe=args.exe,
        unit=args.unit,
        namespace=args.namespace,
        pod=args.pod,
        kept=args.kept or None,
    )


def parsed(option: str, parse: Callable[[str], _T], text: str) -> _T:
    """The value of an option; its parser's ValueError becomes a UsageError that names it."""
    try:
        return parse(text.strip())
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def before(now: datetime.datetime, seconds: float) -> datetime.datetime:
    """So long before `now`; the beginning of time if that is longer ago."""
    try:
        return now - datetime.timedelta(seconds=seconds)
    except OverflowError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


def moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """A duration before `now`, `today`, `yesterday`, or an ISO 8601 time (local if without zone).

    Raises ValueError.
    """
    midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    match text.lower():
        case "today":
            return midnight.astimezone()
        case "yesterday":
            return (midnight - datetime.timedelta(days=1)).astimezone()
    with contextlib.suppress(ValueError):
        return before(now, parse_duration(text))
    try:
        found = datetime.datetime.fromisoformat(text)
        return found if found.tzinfo else found.astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{quote(text)} is not a time: give 2026-11-21, 2026-11-21T10:00, an age such as 2h or "
            "7d, today or yesterday"
        ) from None


def reading(path: Path) -> Store:
    """The store, to read from. A context manager."""
    return Store(path, create=False, readonly=True)
