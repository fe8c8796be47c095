"""`coreward completion`: scripts by which shells complete verbs, options and ids.

The scripts are made of the parser that `--help` is made of. What an argument takes is told by its
name there: FILE, DIR, ID, ID|FILE, SIGNATURE. For ids the shell asks this verb again.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from itertools import islice

from collector.cli import render
from collector.cli.choice import reading
from collector.errors import UsageError
from collector.store.store import LATEST, Store

_SHELLS = ("bash", "zsh", "fish")
_MOST = 50  # that are offered: the newest
_LONGEST = 80  # characters that tell what one is
_ASK = "coreward completion"


class CompletionVerb:
    """Prints a script for bash, zsh or fish, which then completes verbs, options, files, and ids of
    deaths and signatures: `source <(coreward completion bash)`. Debian's package has them in
    place."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", nargs="?", choices=_SHELLS, help="whose script is printed")
        for kind in ("deaths", "signatures"):  # what a script asks for: those that begin so
            parser.add_argument(f"--{kind}", metavar="PREFIX", help=argparse.SUPPRESS)

    def run(self, args: argparse.Namespace) -> int:
        if args.deaths is None and args.signatures is None:
            if args.shell is None:
                raise UsageError(f"completion: give a shell: {', '.join(_SHELLS)}")
            print(script(args.shell))
            return 0
        with contextlib.suppress(Exception):  # somebody types, and no message would help him
            with reading(args.store) as store:
                found = list(
                    _deaths(store, args.deaths)
                    if args.deaths is not None
                    else _signatures(store, args.signatures)
                )
            for word, what in found:
                print(f"{word}\t{render.cut(what, _LONGEST)}")
        return 0


def _deaths(store: Store, prefix: str) -> Iterator[tuple[str, str]]:
    if LATEST.startswith(prefix):
        yield LATEST, "the newest death"
    for record in store.beginning(prefix.lower(), _MOST):
        when = render.local_time(record.time)
        yield record.id, f"{when} {render.process(record)}: {render.clean(record.reason or '')}"


def _signatures(store: Store, prefix: str) -> Iterator[tuple[str, str]]:
    if LATEST.startswith(prefix):
        yield LATEST, "that of the newest death"
    texts = store.signatures.texts()
    found = (id for id, _ in store.signatures.newest(len(texts)) if id.startswith(prefix.lower()))
    for id in islice(found, _MOST):
        yield id, render.clean(texts.get(id, ""))


def script(shell: str) -> str:
    """For `bash`, `zsh` or `fish`."""
    import shtab  # noqa: PLC0415 (only here)

    from collector.cli import whole_parser  # noqa: PLC0415 (it imports all verbs)

    takes = {
        "FILE": shtab.FILE,
        "DIR": shtab.DIRECTORY,
        "ID": _asked("deaths"),
        "ID|FILE": _asked("deaths", or_files=True),
        "SIGNATURE": _asked("signatures"),
    }
    whole = whole_parser()
    for parser in _parsers(whole):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for told in action._choices_actions:  # a line has room for a summary
                    action.choices[told.dest].description = told.help
            if action.help is not argparse.SUPPRESS and action.metavar in takes:
                action.complete = takes[action.metavar]  # type: ignore[attr-defined]
    return str(shtab.complete(whole, shell=shell))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _parsers(sub)


def _asked(kind: str, *, or_files: bool = False) -> dict[str, object]:
    """How each shell asks for words of this kind, or files as well, in shtab's terms."""
    function = f"_coreward_{kind}{'_or_files' if or_files else ''}"
    files = {
        "bash": '  compgen -f -- "$1"\n' if or_files else "",
        "zsh": "  _files\n" if or_files else "",
        "fish": "; __fish_complete_path (commandline -ct)" if or_files else "",
    }
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({_ASK} --{kind} (commandline -ct) 2>/dev/null{files['fish']})",
        "preamble": {
            # ids alone: compgen expands what it is given
            "bash": f"""\
{function}() {{
  local store= at word ids
  for ((at = 1; at < COMP_CWORD; at++)); do  # the line may name another one
    [[ "${{COMP_WORDS[at]}}" == --store ]] || continue
    word="${{COMP_WORDS[at + 1]}}"
    [[ "$word" == = ]] && word="${{COMP_WORDS[at + 2]}}"  # bash parts words at it
    store="${{word/#\\~\\//$HOME/}}"
  done
  ids="$(${{store:+env "COREWARD_STORE=$store"}} {_ASK} --{kind} "$1" 2>/dev/null | cut -f1)"
  compgen -W "$ids" -- "$1"
{files["bash"]}}}
""",
            "zsh": f"""\
{function}() {{
  local -a found=("${{(@f)$({_ASK} --{kind} "$PREFIX" 2>/dev/null)}}")
  found=("${{(@)found/$'\\t'/:}}")
  _describe -V '{kind}' found
{files["zsh"]}}}
""",
        },
    }
