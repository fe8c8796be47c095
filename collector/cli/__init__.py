"""The command line: a table of verbs. Each verb lives in one module, imported only when used.

A verb is a class with two methods: `arguments` declares what it takes, `run` does it and returns
the exit status. Its docstring is its help text. Failures are `CorewardError`s; turning them into
one line and an exit status happens here and nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from collector import __version__
from collector.cli.output import open_closed, say_no_more, terminal
from collector.errors import CorewardError

DEFAULT_STORE = Path("/var/lib/coreward")
DEFAULT_CONFIG = Path("/etc/coreward/coreward.yaml")

# verb -> what `coreward --help` says of it
VERBS = {
    "run": "collect crashes: the agent, in the foreground",
    "list": "the deaths on record, newest first",
    "watch": "deaths as they happen",
    "top": "who dies most, as it happens",
    "last": "how a process of a unit last ended",
    "info": "everything known about one death",
    "bt": "backtrace of the thread that died, or of all",
    "signatures": "which bugs there are, and how often each",
    "signature": "everything known about one bug",
    "note": "write down what is known about a bug",
    "calls": "the last system calls of a process that died",
    "heap": "what the memory of a process was used for",
    "core": "write the ELF core of a death to a file",
    "export": "a death in a form for others",
    "debug": "open a core in gdb with the right executable",
    "mount": "a file system of cores, stored ones and live ones",
    "sample": "where the threads of live processes are, over time",
    "trace": "system calls, signals and ends of processes, as they come",
    "rm": "remove records and their cores",
    "keep": "mark records that are not to go by themselves",
    "snapshot": "a core of a running process, which goes on",
    "gcore": "the same with the arguments of gdb's gcore",
    "policy": "check a configuration; say what it would do",
    "completion": "what a shell needs to complete these words",
    "doctor": "what works on this host; put settings back",
}


class Verb(Protocol):
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit status. Raises CorewardError."""


def load(verb: str) -> Verb:
    """The verb's object, from `collector.cli.<verb>`."""
    module = importlib.import_module(f"collector.cli.{verb}")
    return cast(Verb, getattr(module, f"{verb.capitalize()}Verb")())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `coreward` command; returns the exit status."""
    # not list(): in this package that name is the verb's module, once it was imported
    words = [*(sys.argv[1:] if argv is None else argv)]
    if argv is None and Path(sys.argv[0]).name == "gcore":
        words = ["gcore", "--", *words]  # which parses them as that script does
    open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the locale lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = _parse(words)
        with _pager(args):
            status = args.verb.run(args)
            sys.stdout.flush()
        return int(status)
    except CorewardError as error:
        print(f"coreward: {error.told()}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # the reader of our output left (`| head`): not an error
        say_no_more()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        say_no_more()
        print(f"coreward: stdout: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parse(words: list[str]) -> argparse.Namespace:
    # only the verb that is used is imported; without one, all are listed by their summaries
    used = next((word for word in words if not word.startswith("-")), "")
    loaded = {used: load(used)} if used in VERBS else {}
    passed_on: list[str] = []
    if "--" in words and getattr(loaded.get(used), "passes_on", False):
        at = words.index("--")  # what follows is for the program that the verb starts
        words, passed_on = words[:at], words[at + 1 :]
    shown = loaded if loaded and words[:1] == [used] else VERBS
    args = parser(loaded, shown).parse_args(words)
    args.passed_on = passed_on
    named = args.store or os.environ.get("COREWARD_STORE")
    args.store_given = bool(named)  # else `run` takes the one of its configuration
    args.store = Path(named or DEFAULT_STORE)
    return args


def parser(loaded: Mapping[str, Verb], shown: Iterable[str] = VERBS) -> argparse.ArgumentParser:
    """What the command line may say: all of the verbs that are loaded, of others their names.

    `--help`, the completion of shells and the manual page are made of it.
    """
    whole = argparse.ArgumentParser(
        prog="coreward",
        description="Collects crashes without delaying the restart of what died.",
        usage="coreward VERB [...]    (coreward VERB --help says more)",
    )
    whole.add_argument("--version", action="version", version=f"coreward {__version__}")
    verbs = whole.add_subparsers(title="verbs", metavar="VERB", required=True, prog="coreward")
    for name in shown:
        verb = loaded.get(name)
        if verb is None:
            verbs.add_parser(name, help=VERBS[name], add_help=False)
            continue
        sub = verbs.add_parser(name, help=VERBS[name], description=_help_text(verb))
        sub.add_argument(
            "--store",
            type=Path,
            metavar="DIR",
            help=f"where records and cores are kept (default: $COREWARD_STORE, or {DEFAULT_STORE})",
        )
        verb.arguments(sub)
        if getattr(verb, "is_paged", False):
            sub.add_argument("--no-pager", action="store_true", help="print it all, on a terminal")
        sub.set_defaults(verb=verb)
    return whole


def whole_parser() -> argparse.ArgumentParser:
    """With all verbs loaded."""
    return parser({name: load(name) for name in VERBS})


def _pager(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """For verbs whose output for people is long."""
    no_pager = getattr(args, "no_pager", True) or getattr(args, "json", False)
    if no_pager or terminal() is None:
        return contextlib.nullcontext()
    from collector.cli.pager import paged  # noqa: PLC0415 (only on a terminal)

    return paged()


def _help_text(verb: Verb) -> str:
    return " ".join((type(verb).__doc__ or "").split())
