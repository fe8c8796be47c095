"""`coreward mount`: a file system of cores, in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from collector.cli.choice import DEFAULT_RUN_DIR, mode_argument, parsed, reading
from collector.cli.redaction import redaction, redaction_arguments
from collector.dumpers.door import SOCKET
from collector.errors import StoreError, UsageError
from collector.model import SnapshotMode
from collector.mount.crashes import Crashes
from collector.mount.held import Held
from collector.mount.live import SNAPSHOTS, Live, LiveRules
from collector.mount.live_core import MAX_AGE
from collector.mount.tree import Folder, Tree
from collector.policy.units import parse_duration

_SUID_DUMPABLE = Path("/proc/sys/fs/suid_dumpable")  # proc(5)


class MountVerb:
    """Mounts a file system of cores that are read as they are asked for: crashes/ID.core, each core
    of the store as a plain ELF file, compressed ones too; live/PID.core, a core of a process that
    goes on, taken when it is opened and given up when it is closed; held/PID.core, of one that
    waits in its death for its dumper. In the foreground, until Ctrl-C or `umount DIR`."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("dir", type=Path, metavar="DIR", help="an empty folder")
        mode_argument(
            parser,
            "how live cores are taken, as in `snapshot` (default: one instant, by copy-on-write; "
            "memory as it is when it is read, where the process cannot be copied)",
        )
        parser.add_argument(
            "--share",
            action="store_true",
            help="whoever opens a live core while it is open gets the same one",
        )
        parser.add_argument(
            "--allow",
            type=int,
            action="append",
            default=[],
            metavar="UID",
            help="let this user in as well; he sees his own processes and their crashes",
        )
        parser.add_argument(
            "--snapshots",
            type=int,
            default=SNAPSHOTS,
            metavar="N",
            help=f"live cores that may be open at a time (default: {SNAPSHOTS})",
        )
        parser.add_argument(
            "--max-age",
            default=f"{MAX_AGE:g}s",
            metavar="TIME",
            help=f"a live core is given up after that (default: {MAX_AGE / 60:g}m)",
        )
        parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR, metavar="DIR")
        redaction_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        from collector.mount.fuse import serve  # noqa: PLC0415 (only here is libfuse needed)

        folder: Path = args.dir
        _check(folder, args)
        logging.basicConfig(level=logging.INFO, format="coreward: %(message)s")
        rules = LiveRules(
            mode=SnapshotMode(args.mode),
            share=args.share,
            most=args.snapshots,
            max_age=parsed("--max-age", parse_duration, args.max_age),
        )
        redaction_of = redaction(args)
        live = Live(rules, redaction_of)
        held = Held(args.run_dir / SOCKET, rules.max_age, redaction_of)
        folders: dict[str, Folder] = {"live": live, "held": held}
        try:
            folders["crashes"] = Crashes(reading(args.store))
        except StoreError as error:
            logging.getLogger(__name__).warning("without crashes/: %s", error)
        tree = Tree(folders, os.geteuid(), args.allow)

        def mounted() -> None:
            print(f"{folder}: mounted", flush=True)
            live.prepare()

        serve(folder, tree, others=bool(args.allow), mounted=mounted)
        return 0


def _check(folder: Path, args: argparse.Namespace) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; make it first")
    if args.snapshots < 1:
        raise UsageError("--snapshots: at least 1")
    if args.allow and _SUID_DUMPABLE.read_text().strip() != "0":
        raise UsageError(
            "--allow: fs.suid_dumpable is not 0, so cores of users may hold secrets of others"
        )
