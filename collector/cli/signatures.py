"""`coreward signatures`."""

from __future__ import annotations

import argparse
import datetime
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import msgspec

from collector.cli import render
from collector.cli.choice import json_argument, reading
from collector.cli.signature_rules import config_argument, rules_in_force
from collector.errors import StoreError, UsageError
from collector.signature.rules import Rules
from collector.signature.types import ALGORITHM
from collector.store.signatures import SignatureRow
from collector.store.store import Store

_HEAD = ["ID", "DEATHS", "FIRST", "LAST", "BUILDS", "EXECUTABLE", "SIGNATURE"]
_TO_THE_RIGHT = (1, 4)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """Deaths of one signature in one build of an executable."""

    exe: str | None
    build: str | None  # build-id; None: not known
    deaths: int
    first: datetime.datetime
    last: datetime.datetime


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """One signature, as `signatures --json` prints it."""

    id: str
    text: str
    deaths: int
    first: datetime.datetime
    last: datetime.datetime
    executables: list[str]
    builds: list[Build]  # the one that died last first
    outdated: bool  # some were named by other rules than those in force
    note: str | None = None


class SignaturesVerb:
    """Lists the signatures on record, those with most deaths first: each is one bug, as far as can
    be told. With --rebuild the signatures of all records are made anew, by the rules in force."""

    is_paged = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--exe", metavar="GLOB", help="only of these executables")
        parser.add_argument("--limit", type=int, metavar="N", help="at most N signatures")
        parser.add_argument("--rebuild", action="store_true", help="name all deaths anew")
        parser.add_argument(
            "--dry-run", action="store_true", help="with --rebuild: only say what would change"
        )
        config_argument(parser)
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.limit is not None and args.limit < 0:
            raise UsageError(f"--limit {args.limit}: must not be negative")
        if args.dry_run and not args.rebuild:
            raise UsageError("--dry-run: goes with --rebuild")
        rules = rules_in_force(args)
        if args.rebuild:
            return _rebuild(args, rules)
        with reading(args.store) as store:
            found = counted(store, rules)
        if args.exe is not None:
            found = [c for c in found if any(fnmatchcase(e, args.exe) for e in c.executables)]
        shown = found if args.limit is None else found[: args.limit]
        if args.json:
            render.print_json(shown)
            return 0
        if not shown:
            print(f"no signatures on record in {render.clean(args.store)}")
            return 0
        print("\n".join(table(shown, render.Screen())))
        _say_outdated(found)
        return 0


def counted(store: Store, rules: Rules, only: str | None = None) -> list[Counted]:
    """All signatures, or this one if it is there; those with most deaths first."""
    texts = store.signatures.texts()
    notes = set(store.notes.ids())
    by_id: dict[str, list[SignatureRow]] = defaultdict(list)
    for row in store.signatures.counts(only):
        by_id[row.signature].append(row)
    current = f"{ALGORITHM}:{rules.id}"
    found = [
        _counted(id, texts.get(id, "?"), rows, current, _note(store, id) if id in notes else None)
        for id, rows in by_id.items()
    ]
    return sorted(found, key=lambda one: (-one.deaths, -one.last.timestamp(), one.id))


def _counted(
    id: str, text: str, rows: Sequence[SignatureRow], current: str, note: str | None
) -> Counted:
    builds: dict[tuple[str | None, str | None], list[SignatureRow]] = defaultdict(list)
    for row in rows:
        builds[row.exe, row.build].append(row)
    made = [
        Build(exe=exe, build=build, deaths=_sum(some), first=_first(some), last=_last(some))
        for (exe, build), some in builds.items()
    ]
    return Counted(
        id=id,
        text=text,
        deaths=_sum(rows),
        first=_first(rows),
        last=_last(rows),
        executables=sorted({row.exe for row in rows if row.exe is not None}),
        builds=sorted(made, key=lambda build: build.last, reverse=True),
        outdated=any(row.rules not in (None, current) for row in rows),
        note=note,
    )


def _note(store: Store, id: str) -> str | None:
    try:
        note = store.notes.read(id)
    except StoreError as error:
        render.print_lost([error])
        return None
    return None if note is None else note.text


def _sum(rows: Iterable[SignatureRow]) -> int:
    return sum(row.deaths for row in rows)


def _first(rows: Iterable[SignatureRow]) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=min(row.first for row in rows))


def _last(rows: Iterable[SignatureRow]) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=max(row.last for row in rows))


def table(found: Sequence[Counted], screen: render.Screen) -> list[str]:
    """The lines of the list, heading first."""
    rows = [_HEAD] + [_row(one, screen) for one in found]
    lines = []
    for number, row in enumerate(render.columns(rows, _TO_THE_RIGHT)):
        line = render.GAP.join(row).rstrip()
        if screen.width is not None:
            line = render.cut(line, screen.width)
        lines.append(screen.bold(line) if number == 0 else line)
    return lines


def _row(one: Counted, screen: render.Screen) -> list[str]:
    names = [exe.rsplit("/", 1)[-1] for exe in one.executables]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    note = f"  [{one.note}]" if one.note is not None else ""
    builds = sum(build.build is not None for build in one.builds)
    return [
        one.id,
        str(one.deaths),
        screen.when(one.first),
        screen.when(one.last),
        str(builds or "-"),
        render.clean((names[0] + more) if names else "-"),
        render.clean(one.text + note),
    ]


def _say_outdated(found: Sequence[Counted]) -> None:
    outdated = sum(one.outdated for one in found)
    if outdated:
        print(
            f"{outdated} of these have deaths that were named by other rules than those in force: "
            "coreward signatures --rebuild"
        )


def _rebuild(args: argparse.Namespace, rules: Rules) -> int:
    from collector.cli.regroup import regroup, regrouped_lines  # noqa: PLC0415 - only here

    damage: list[StoreError] = []
    with Store(args.store, create=False, readonly=args.dry_run) as store:
        moves = regroup(store, rules, damage.append, dry_run=args.dry_run)
    if args.json:
        render.print_json(moves)
    else:
        print("\n".join(regrouped_lines(moves, dry_run=args.dry_run)))
    render.print_lost(damage)
    return 0
