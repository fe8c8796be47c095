"""`coreward signature`."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable, Sequence

import msgspec

from collector.cli import render
from collector.cli.choice import json_argument, reading
from collector.cli.signature_rules import config_argument, rules_in_force
from collector.cli.signatures import Counted, counted
from collector.errors import NotFound, StoreError
from collector.model import Record
from collector.signature.compare import Finding, Tally, over_represented
from collector.signature.note import Note
from collector.signature.rules import Rules
from collector.signature.similar import Similar, similar
from collector.signature.stack import names
from collector.store.store import Store

_EXAMPLES = 5
_MOST_COMPARED = 300  # signatures, those seen last
_LABEL = 12  # columns


class Example(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    time: datetime.datetime
    comm: str
    pid: int
    reason: str | None
    fine: str | None


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One stack in which deaths of a signature ended, of those that were looked at."""

    fine: str
    deaths: int
    frames: list[str]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What `signature --json` prints. Without `compared` there is nothing to compare with."""

    signature: Counted
    note: Note | None
    examples: list[Example]  # the newest first
    ways: list[Way]
    similar: list[Similar]
    similar_texts: dict[str, str]
    over_represented: list[Finding]
    compared: int  # deaths of other signatures


class SignatureVerb:
    """Shows what is known of one signature: its newest deaths, its builds, stacks that are like its
    own, and what its deaths have more often than others."""

    is_paged = True

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "signature",
            metavar="SIGNATURE",
            help="first digits of its ID, or `latest`: that of the newest death",
        )
        config_argument(parser)
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        rules = rules_in_force(args)
        damage: list[StoreError] = []
        with reading(args.store) as store:
            id = store.signatures.resolve(args.signature)
            found = known(store, id, rules, damage)
        if args.json:
            render.print_json(found)
        else:
            print("\n".join(lines(found, render.Screen())))
        render.print_lost(damage)
        return 0


def known(store: Store, id: str, rules: Rules, damage: list[StoreError]) -> Known:
    """NotFound if all of its deaths were removed."""
    counts = counted(store, rules, id)
    if not counts:
        raise NotFound(f"no death on record has signature {id} any more").advised(
            "`coreward signatures` shows those that there are"
        )
    records = store.list(signature=id, limit=_EXAMPLES, on_damage=damage.append)
    near = similar(id, _stacks(store, id, records, rules, damage))
    texts = store.signatures.texts()
    return Known(
        signature=counts[0],
        note=store.notes.read(id),
        examples=[_example(record) for record in records],
        ways=_ways(records, rules),
        similar=near,
        similar_texts={one.signature: texts.get(one.signature, "?") for one in near},
        over_represented=over_represented(Tally(*row) for row in store.signatures.tallies(id)),
        compared=store.signatures.others(id),
    )


def _example(record: Record) -> Example:
    return Example(
        id=record.id,
        time=record.time,
        comm=record.comm,
        pid=record.pid,
        reason=record.reason,
        fine=None if record.signature is None else record.signature.fine,
    )


def _ways(records: Iterable[Record], rules: Rules) -> list[Way]:
    """The different stacks of these deaths."""
    by_hash: dict[str, list[Record]] = {}
    for record in records:
        if record.frames and record.signature is not None and record.signature.fine:
            by_hash.setdefault(record.signature.fine, []).append(record)
    return [
        Way(fine=fine, deaths=len(some), frames=names(some[0].frames or [], rules))
        for fine, some in by_hash.items()
    ]


def _stacks(
    store: Store, id: str, records: Sequence[Record], rules: Rules, damage: list[StoreError]
) -> dict[str, list[str]]:
    """The functions of one death of each signature."""
    stacks = {}
    mine = next((record for record in records if record.frames), None)
    if mine is None:
        return {}
    stacks[id] = names(mine.frames or [], rules)
    for signature, example in store.signatures.newest(_MOST_COMPARED):
        if signature == id:
            continue
        try:
            record = store.get(example)
        except NotFound:  # removed meanwhile
            continue
        except StoreError as error:
            damage.append(error)
            continue
        if record.frames:
            stacks[signature] = names(record.frames, rules)
    return stacks


def lines(found: Known, screen: render.Screen) -> list[str]:
    """What is printed."""
    counts = found.signature
    made = [
        f"Signature {counts.id}",
        "",
        screen.bold(render.clean(counts.text)),
        _line("deaths", counts.deaths, screen),
        _line("first", screen.moment(counts.first), screen),
        _line("last", screen.moment(counts.last), screen),
        *(_line("executable", exe, screen) for exe in counts.executables),
    ]
    if found.note is not None:
        fixed = "" if found.note.fixed_in is None else f" (fixed in {found.note.fixed_in})"
        written = f"{found.note.text}{fixed}, noted {render.local_time(found.note.time)}"
        made.append(_line("note", written, screen))
    if counts.outdated:
        outdated = "some were named by other rules than those in force: signatures --rebuild"
        made.append(_line("outdated", outdated, screen))
    for title, group in (
        ("Builds", _build_lines(counts)),
        ("Newest deaths", _example_lines(found.examples)),
        ("Ways into it", _way_lines(found.ways)),
        ("Similar", _similar_lines(found)),
        ("More frequent than in other deaths", _finding_lines(found)),
    ):
        if group:
            made += ["", screen.bold(title), *(f"  {render.clean(line)}" for line in group)]
    return made


def _line(label: str, value: object, screen: render.Screen) -> str:
    return f"  {screen.dim(label.ljust(_LABEL))}{render.GAP}{render.clean(value)}"


def _build_lines(counts: Counted) -> list[str]:
    return [
        f"{build.build or 'not known'}  {build.deaths} deaths, {render.local_time(build.first)} to "
        f"{render.local_time(build.last)}"
        for build in counts.builds
    ]


def _example_lines(examples: Iterable[Example]) -> list[str]:
    return [
        f"{one.id}  {render.local_time(one.time)}  pid {one.pid}  {one.reason}" for one in examples
    ]


def _way_lines(ways: Iterable[Way]) -> list[str]:
    return [f"{way.fine}  {way.deaths}: {' < '.join(way.frames[:8])}" for way in ways]


def _similar_lines(found: Known) -> list[str]:
    return [
        f"{one.signature}  {one.likeness:.0%}  {found.similar_texts[one.signature]}  (both: "
        f"{', '.join(one.shared)})"
        for one in found.similar
    ]


def _finding_lines(found: Known) -> list[str]:
    if not found.compared:
        return ["nothing to compare with: there are no other deaths on record"]
    made = [
        f"{one.facet} {one.value}: {one.here} of {one.of_here} here, {one.others} of "
        f"{one.of_others} others; {_chance(one.chance)} ({one.episodes} episodes)"
        for one in found.over_represented
    ]
    return made or [f"nothing that could not be chance, against {found.compared} other deaths"]


def _chance(chance: float) -> str:
    return "chance below 0.1%" if chance < 0.001 else f"chance {chance:.1%}"
