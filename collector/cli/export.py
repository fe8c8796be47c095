"""`coreward export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from collector.cli.anonymous import anonymous
from collector.cli.choice import id_argument, reading
from collector.errors import CorewardError, UsageError
from collector.store.encoding import json_text

_FORMS = ("anonymous", "bundle", "minidump")


class ExportVerb:
    """Gives a death to others. --bundle is one archive with all that debugging it takes: the core,
    the record, the executable and the libraries that were mapped, their debugging information;
    `coreward debug FILE` opens it on another machine. --minidump is what Sentry, Socorro and
    Backtrace take: registers and stacks of all threads, names and build-ids of what was mapped,
    arguments and environment. --anonymous is a small report in JSON: the kind of the death and the
    stack of the thread that died, without memory, registers, arguments, sentences, times of the
    day, names of hosts, units and users, and paths but those of files of a distribution."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        id_argument(parser)
        form = parser.add_mutually_exclusive_group()
        form.add_argument(
            "--bundle", action="store_true", help="an archive (tar, zstd) to debug elsewhere"
        )
        form.add_argument(
            "--minidump", action="store_true", help="a minidump with the registers and stacks"
        )
        form.add_argument(
            "--anonymous", action="store_true", help="a report that tells of no person or host"
        )
        parser.add_argument(
            "--root",
            type=Path,
            default=Path("/"),
            metavar="DIR",
            help="with --bundle: where the process's root is now, as /proc/PID/root of another "
            "process in its container (default: /)",
        )
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a new file")
        parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
        parser.epilog = "example: coreward export latest --bundle -o crash.tar.zst"

    def run(self, args: argparse.Namespace) -> int:
        if args.bundle:
            from collector.cli.export_bundle import export_bundle  # noqa: PLC0415 (only here)

            return export_bundle(args)
        if args.minidump:
            from collector.cli.export_minidump import export_minidump  # noqa: PLC0415 (the same)

            return export_minidump(args)
        if not args.anonymous:
            raise UsageError(
                f"export: say in which form: {', '.join(f'--{form}' for form in _FORMS)}"
            )
        with reading(args.store) as store:
            text = json_text(anonymous(store.get(args.id)))
        if args.output is None:
            print(text, end="")
            return 0
        try:
            with args.output.open("w" if args.force else "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise CorewardError(f"{args.output}: cannot be written: {error.strerror}") from error
        return 0
