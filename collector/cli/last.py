"""`coreward last`."""

from __future__ import annotations

import argparse

from collector.cli import render
from collector.cli.choice import json_argument, reading
from collector.errors import NotFound, UsageError
from collector.introspect.last import last_of, own_unit


class LastVerb:
    """Says how a process of a systemd unit last ended, as far as it is on record: its death, or an
    end that was no crash. Without --unit it is the unit that this command runs in: a service can
    ask why its predecessor died. Exit status 1 if nothing is on record."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--unit", metavar="UNIT", help="its whole name, as billing.service")
        json_argument(parser)

    def run(self, args: argparse.Namespace) -> int:
        unit = args.unit or _own_unit()
        with reading(args.store) as store:
            found = last_of(store, unit)
        if found is None:
            raise NotFound(f"no end of a process of {unit} is on record in {args.store}").advised(
                "`coreward list --unit 'GLOB'` and `--routine` show those of others"
            )
        if args.json:
            render.print_json(found)
        else:
            when = render.local_time(found.time)
            record = "" if found.id is None else f"; `coreward info {found.id}` says more"
            print(render.clean(f"{when} {found.comm}[{found.pid}]: {found.reason}{record}"))
        return 0


def _own_unit() -> str:
    try:
        return own_unit()
    except UsageError as error:
        raise UsageError(f"last: {error} with --unit") from error
