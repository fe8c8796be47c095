"""`coreward export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from collector.cli.anonymous import anonymous
from collector.cli.choice import id_argument, reading
from collector.errors import CorewardError, UsageError
from collector.store.encoding import json_text


class ExportVerb:
    """Gives a death to others. --anonymous is a small report in JSON: the kind of the death and the
    stack of the thread that died, without memory, registers, arguments, sentences, times of the
    day, names of hosts, units and users, and paths but those of files of a distribution."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        parser.add_argument(
            "--anonymous", action="store_true", help="a report that tells of no person or host"
        )
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a new file")

    def run(self, args: argparse.Namespace) -> int:
        if not args.anonymous:
            raise UsageError("export: say in which form: --anonymous")
        with reading(args.store) as store:
            text = json_text(anonymous(store.get(args.id)))
        if args.output is None:
            print(text, end="")
            return 0
        try:
            with args.output.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise CorewardError(f"{args.output}: cannot be written: {error.strerror}") from error
        return 0
