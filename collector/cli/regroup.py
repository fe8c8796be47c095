"""Name all deaths on record anew, by the rules in force, and say what became of which signature.

Notes go with their signatures; where one falls apart, each part has the note. Killed in between it
is done again: each record is replaced as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
from msgspec.structs import replace

from collector.cli import render
from collector.errors import StoreError
from collector.model import Cause, Record, Signature
from collector.signature.compose import from_stack, signed
from collector.signature.note import Note
from collector.signature.rules import Rules
from collector.signature.stack import stack_key
from collector.store.store import Store

_AT_ONCE = 500  # records that share one flush of the disk
_MOST_KNOWN = 100_000  # stacks by which deaths are named that were not unwound

Damage = Callable[[StoreError], None]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Records whose signature is another one now."""

    records: int
    before: str | None  # id; None: they had none
    before_text: str | None
    after: str
    after_text: str


class Regrouped(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild did. `kept`: records whose signature stayed what it was."""

    records: int
    kept: int
    moved: list[Moved]
    notes: int  # that moved


def regroup(store: Store, rules: Rules, on_damage: Damage, *, dry_run: bool) -> Regrouped:
    """Records that are still being worked on are left to their agent."""
    moves: Counter[tuple[str | None, str | None, str, str]] = Counter()
    kept: Counter[str] = Counter()
    for record, made in _renamed(store, rules, on_damage):
        before, after = record.signature, made.signature
        if after is None or after.id is None or after.text is None:
            continue
        if before is not None and before.id == after.id:
            kept[after.id] += 1
        else:
            old = (None, None) if before is None else (before.id, before.text)
            moves[(*old, after.id, after.text)] += 1
    if not dry_run:
        changed = (made for record, made in _renamed(store, rules, on_damage) if made != record)
        while some := list(islice(changed, _AT_ONCE)):
            with store.batch():
                for record in some:
                    if store.has(record.id):  # else it was removed meanwhile
                        store.put(record)
    moved = [
        Moved(records=count, before=old, before_text=text, after=new, after_text=new_text)
        for (old, text, new, new_text), count in moves.most_common()
    ]
    return Regrouped(
        records=kept.total() + moves.total(),
        kept=kept.total(),
        moved=moved,
        notes=0 if dry_run else _move_notes(store, moved, kept, on_damage),
    )


def _renamed(store: Store, rules: Rules, on_damage: Damage) -> Iterator[tuple[Record, Record]]:
    """Each closed record of a death, and what it is now: those first that have a stack."""
    known: dict[str, Signature] = {}
    unwound = set()
    for record in _closed(store, on_damage):
        key = stack_key(record.frames or [], rules)
        if key is None:
            continue
        unwound.add(record.id)
        old = record.signature
        made = signed(replace(record, signature=from_stack(key)))
        fine = None if old is None else old.fine
        if fine is not None and made.signature is not None and len(known) < _MOST_KNOWN:
            known[fine] = made.signature
        yield record, _with_note_of(record, made)
    for record in _closed(store, on_damage):
        if record.id in unwound:
            continue
        old = record.signature
        like = known.get(old.fine) if old is not None and old.fine is not None else None
        made = signed(replace(record, signature=None), like)
        yield record, _with_note_of(record, made)


def _with_note_of(record: Record, made: Record) -> Record:
    """What was known of it when it died stays what it was."""
    old, new = record.signature, made.signature
    if old is None or new is None:
        return made
    return replace(made, signature=replace(new, note=old.note, regression=old.regression))


def _closed(store: Store, on_damage: Damage) -> Iterator[Record]:
    for id in sorted(store.ids()):
        try:
            record = store.get(id)
        except StoreError as error:
            on_damage(error)
            continue
        if record.reason is not None and record.cause is not Cause.SNAPSHOT:
            yield record


def _move_notes(store: Store, moved: list[Moved], kept: Counter[str], on_damage: Damage) -> int:
    """Each note to the signatures that its deaths have now; how many moved."""
    done = 0
    for id in store.notes.ids():
        targets = [move.after for move in moved if move.before == id]
        if not targets:
            continue
        try:
            note = store.notes.read(id)
            for target in targets:
                store.notes.write(target, _merged(note, store.notes.read(target)))
            if not kept[id]:
                store.notes.remove(id)
        except StoreError as error:
            on_damage(error)
            continue
        done += 1
    return done


def _merged(note: Note | None, other: Note | None) -> Note:
    """The newer of two notes; a signature that has come together keeps both texts."""
    notes = sorted((n for n in (note, other) if n is not None), key=lambda n: n.time)
    newest = notes[-1]
    texts = dict.fromkeys(n.text for n in notes)
    return replace(newest, text="; ".join(texts))


def regrouped_lines(done: Regrouped, *, dry_run: bool) -> list[str]:
    """What is printed of it."""
    would = "would have" if dry_run else "have"
    lines = [
        f"{done.records} deaths, of which {done.records - done.kept} {would} another signature"
    ]
    for move in done.moved:
        old = "none" if move.before is None else f"{move.before} {move.before_text}"
        lines.append(render.clean(f"{move.records}: {old}  ->  {move.after} {move.after_text}"))
    if done.notes:
        lines.append(f"{done.notes} notes went with them")
    return lines
