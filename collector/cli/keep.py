"""`coreward keep`."""

from __future__ import annotations

import argparse

import msgspec

from collector.cli import render
from collector.cli.choice import json_argument
from collector.store.store import Store


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What was marked."""

    id: str
    kept: bool


class KeepVerb:
    """Marks records as to be kept: neither their age nor other deaths remove them, as long as there
    is anything else to remove. `list --kept` shows them. If one of the IDs is unknown or ambiguous,
    nothing is marked."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("ids", nargs="+", metavar="ID", help="`latest`, or first digits")
        parser.add_argument("--undo", action="store_true", help="keep them no more")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        with Store(args.store, create=False) as store:
            ids = dict.fromkeys(store.resolve(name) for name in args.ids)
            for id in ids:
                store.keep(id, not args.undo)
        if args.json:
            render.print_json([Kept(id=id, kept=not args.undo) for id in ids])
        else:
            for id in ids:
                print(f"{id} is {'kept no more' if args.undo else 'kept'}")
        return 0
