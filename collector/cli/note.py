"""`coreward note`."""

from __future__ import annotations

import argparse
import datetime

from collector.cli import render
from collector.cli.choice import json_argument
from collector.errors import NotFound, UsageError
from collector.signature.note import LONGEST, MOST_BUILDS, Note
from collector.store.store import Store

_LONGEST_VERSION = 128


class NoteVerb:
    """Writes a note about a signature, which the next death that has it shows; without a text it
    shows the note. --fixed-in says from which build, or version, on the bug is gone: a death in it,
    or in any build that was not seen before, is then a regression."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "signature",
            metavar="SIGNATURE",
            help="first digits of its ID, or `latest`: that of the newest death",
        )
        parser.add_argument("text", nargs="?", metavar="TEXT", help='such as "fixed in 2.3"')
        parser.add_argument("--fixed-in", metavar="BUILD", help="a build-id, or a version")
        parser.add_argument("--remove", action="store_true", help="take the note away")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        text = _checked(args)
        with Store(args.store, create=False, readonly=text is None and not args.remove) as store:
            id = _resolved(store, args.signature)
            if args.remove:
                if not store.notes.remove(id):
                    raise NotFound(f"signature {id} has no note")
                note = None
            elif text is not None:
                builds = {row.build for row in store.signatures.counts() if row.signature == id}
                note = Note(
                    text=text,
                    time=datetime.datetime.now(datetime.UTC),
                    fixed_in=args.fixed_in,
                    builds=tuple(sorted(b for b in builds if b is not None)[:MOST_BUILDS]),
                )
                store.notes.write(id, note)
            else:
                note = store.notes.read(id)
                if note is None and not args.json:
                    raise NotFound(f"signature {id} has no note; give a text to write one")
        if args.json:
            render.print_json({"signature": id, "note": note})
        else:
            print(_said(id, note))
        return 0


def _resolved(store: Store, name: str) -> str:
    """Also of a signature of which nothing but the note is left."""
    try:
        return store.signatures.resolve(name)
    except NotFound:
        left = [id for id in store.notes.ids() if id.startswith(name.lower())]
        if len(left) != 1:
            raise
        return left[0]


def _checked(args: argparse.Namespace) -> str | None:
    """The text to write; None: nothing is written."""
    text: str | None = None if args.text is None else " ".join(args.text.split())
    if args.remove and (text is not None or args.fixed_in is not None):
        raise UsageError("note: give either a text or --remove")
    if args.fixed_in is not None and text is None:
        raise UsageError('note: --fixed-in goes with a text such as "fixed by commit 12ab"')
    if text == "" or (text is not None and len(text) > LONGEST):
        raise UsageError(f"note: expected a text of 1 to {LONGEST} characters")
    fixed: str | None = args.fixed_in
    if fixed is not None and not (0 < len(fixed) <= _LONGEST_VERSION and fixed.isprintable()):
        raise UsageError("note: --fixed-in: expected a build-id or a version")
    return text


def _said(id: str, note: Note | None) -> str:
    if note is None:
        return f"{id}: its note is gone"
    fixed = "" if note.fixed_in is None else f" (fixed in {note.fixed_in})"
    return render.clean(f"{id}: {note.text}{fixed}, noted {render.local_time(note.time)}")
