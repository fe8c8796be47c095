"""`python -m deploy.manual DIR`: the manual pages and the scripts of shells' completion, into DIR.

coreward(1) is made of the parser that `--help` is made of, coreward.yaml(5) of docs/policy.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

from collector import __version__
from collector.cli import whole_parser
from collector.cli.completion import script
from deploy.manual.roff import head, of_markdown, section

ROOT = Path(__file__).parents[2]
_ENVIRONMENT = """\
| variable | meaning |
|---|---|
| `COREWARD_STORE` | where records and cores are kept, if `--store` does not say it |
| `COREWARD_PAGER`, `PAGER` | what shows long output on a terminal (default: less); `cat`: nothing |
| `NO_COLOR` | set to anything: no colours on a terminal |
"""
_EXIT = """\
0 if all went well, 1 if something failed, which one line on standard error says, 2 if the arguments
or the configuration make no sense, and 128 and the signal's number if a signal ended it.
"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.manual DIR")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coreward.1").write_text(verbs())
    (folder / "coreward.yaml.5").write_text(policy())
    for shell, name in (("bash", "coreward"), ("zsh", "_coreward"), ("fish", "coreward.fish")):
        (folder / name).write_text(script(shell) + "\n")


def verbs() -> str:
    """coreward(1)."""
    page = Manpage(whole_parser(), format="single-commands-section")
    page.description = "collects crashes"
    made = "\n".join(str(page).splitlines()[1:])  # without its own heading
    return "\n".join(
        (
            head("COREWARD", 1, __version__),
            made.replace(".SH\n", ".SH "),
            section("ENVIRONMENT", _ENVIRONMENT),
            section("EXIT STATUS", _EXIT),
            section("SEE ALSO", "**coreward.yaml**(5), **core**(5), **coredumpctl**(1)"),
            "",
        )
    )


def policy() -> str:
    """coreward.yaml(5)."""
    text = (ROOT / "docs" / "policy.md").read_text()
    _title, _, text = text.partition("\n")
    return "\n".join(
        (
            head("COREWARD.YAML", 5, __version__),
            ".SH NAME\ncoreward.yaml \\- what coreward captures of which death",
            ".SH SYNOPSIS\n.B /etc/coreward/coreward.yaml",
            ".SH DESCRIPTION",
            of_markdown(text),
            section("SEE ALSO", "**coreward**(1)"),
            "",
        )
    )


if __name__ == "__main__":
    main()
