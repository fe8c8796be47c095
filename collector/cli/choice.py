"""How the command line names records: an ID, a filter, a moment, an age, a signal.

Only words to values; what they select is the store's business.
"""

from __future__ import annotations

import argparse
import datetime
import re
import signal
from pathlib import Path

from collector.errors import UsageError
from collector.model import Cause
from collector.store.filter import Filter
from collector.store.store import LATEST, Store

_SPANS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_REAL_TIME = re.compile(r"(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?", re.ASCII)


def id_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `[ID]` as `args.id`."""
    parser.add_argument(
        "id",
        nargs="?",
        default=LATEST,
        metavar="ID",
        help="`latest` (default), or the first digits of an ID",
    )


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


def filter_of(args: argparse.Namespace, now: datetime.datetime) -> Filter:
    """The filter that the arguments describe. UsageError if a value makes no sense."""
    return Filter(
        since=None if args.since is None else moment(args.since, now),
        until=None if args.until is None else moment(args.until, now),
        cause=None if args.cause is None else Cause(args.cause),
        signal=None if args.signal is None else signal_number(args.signal),
        comm=args.comm,
        exe=args.exe,
        unit=args.unit,
    )


def age(text: str) -> datetime.timedelta:
    """`90s`, `30m`, `2h`, `7d`, `2w` as a span of time."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not an age: give a number and s, m, h, d or w, as in 7d")
    return datetime.timedelta(**{_SPANS[found[2]]: int(found[1])})


def moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """An age before `now`, `today`, `yesterday`, or an ISO 8601 time (local if it has no zone)."""
    if _AGE.fullmatch(text.strip()):
        try:
            return now - age(text)
        except OverflowError:
            return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    match text.strip().lower():
        case "today":
            return midnight.astimezone()
        case "yesterday":
            return (midnight - datetime.timedelta(days=1)).astimezone()
    try:
        found = datetime.datetime.fromisoformat(text.strip())
        return found if found.tzinfo else found.astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a time: give 2026-11-21, 2026-11-21T10:00, an age as in 2h, "
            "today or yesterday"
        ) from None


def signal_number(text: str) -> int:
    """The number of `SIGSEGV`, `segv`, `11` or `SIGRTMIN+3`."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isdecimal() and name.isascii() and 1 <= int(name[:4]) <= signal.SIGRTMAX:
        return int(name)
    if f"SIG{name}" in signal.Signals.__members__:
        return signal.Signals[f"SIG{name}"].value
    if found := _REAL_TIME.fullmatch(name):
        sign = -1 if found[2] == "-" else 1
        number = signal.Signals[f"SIG{found[1]}"].value + sign * int(found[3] or 0)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    raise UsageError(f"{text!r} is not a signal: give a name as SIGSEGV, or its number")


def reading(path: Path) -> Store:
    """The store, to read from. A context manager."""
    return Store(path, create=False, readonly=True)
