"""Completion of shells, and the manual pages: both of the parser that `--help` is made of."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collector.cli import VERBS, main, whole_parser
from collector.cli.completion import script
from collector.store.store import Store
from deploy.manual.__main__ import main as write_manual
from deploy.manual.__main__ import policy, verbs
from deploy.manual.roff import of_markdown
from tests.unit.signature_samples import ENTRY, death, own
from tests.unit.store_samples import numbered

ROOT = Path(__file__).resolve().parents[2]
ASK = """
complete_words() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_coreward coreward "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
  echo "${COMPREPLY[*]}"
}
"""


@pytest.fixture(scope="module")
def whole() -> argparse.ArgumentParser:
    return whole_parser()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three deaths, one of them with a signature, and what a terminal would obey in their names."""
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        store.put(numbered(0xAB, reason="$(touch /tmp/evil)\x1b[2J"))
        store.put(numbered(0xCD))
        store.put(death(0x1234, [*own("count_request"), *ENTRY]))
    return tmp_path / "store"


def test_bash_completes_verbs_options_choices_and_ids(store: Path, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "coreward"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m collector "$@"\n')
    command.chmod(0o755)
    asked = {
        "sig": "signatures signature",
        "list --sig": "--signal --signature",
        "list --cause k": "killed",
        "policy ''": "check test",
        "info 00000000000000a": "00000000000000ab",
        "debug 00000000000000a": "00000000000000ab",
        "debug pyproj": "pyproject.toml",  # a bundle is a file
        "completion ''": "bash zsh fish",
        "--store other info 00000000000000": "00000000000000ef",
        "--store = other info 00000000000000": "00000000000000ef",  # as bash parts it
        "debug 'a b'": "a b.tar.zst",
    }
    with Store(tmp_path / "other", create=True) as other:
        other.put(numbered(0xEF))
    (tmp_path / "a b.tar.zst").touch()
    (tmp_path / "pyproject.toml").touch()
    lines = [f"complete_words coreward {words}" for words in asked]
    done = subprocess.run(
        ["bash", "--norc"],
        input="\n".join([script("bash"), ASK, *lines]),
        env={
            **os.environ,
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.splitlines(), done.stderr) == ([*asked.values()], "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_can_be_read_by_its_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    made = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", made)
    assert "coreward completion --deaths" in made and "coreward completion --signatures" in made
    if shutil.which(shell):
        read = subprocess.run([shell, "-n"], input=made, capture_output=True, text=True, check=True)
        assert read.stderr == ""


def test_ids_are_offered_with_what_they_are(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def offered(*words: str) -> list[str]:
        assert main(["completion", *words]) == 0
        out, err = capsys.readouterr()
        assert err == "" and "\x1b" not in out
        return [line.partition("\t")[0] for line in out.splitlines()]

    # GIVEN nothing typed THEN the newest are offered, and `latest`
    assert offered("--deaths", "") == ["latest", *(f"{n:016x}" for n in (0x1234, 0xCD, 0xAB))]
    assert offered("--deaths", "00000000000000A") == [f"{0xAB:016x}"]
    (signature,) = offered("--signatures", "")[1:]
    assert offered("--signatures", signature[:4]) == [signature]
    assert offered("--deaths", "latestt") == offered("--signatures", "x") == []


def test_without_a_store_nothing_is_offered_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "none"))
    assert main(["completion", "--deaths", ""]) == 0
    assert capsys.readouterr() == ("", "")
    # BUT a person who gives no shell is told what to give
    assert main(["completion"]) == 2
    assert capsys.readouterr().err == "coreward: completion: give a shell: bash, zsh, fish\n"


def test_the_manual_has_each_verb_and_option(whole: argparse.ArgumentParser) -> None:
    page = verbs().replace(r"\-", "-")
    (table,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in table.choices.items():
        assert rf".SS \fBcoreward {name}\fR" in page
        for action in verb._actions:
            if action.help is not argparse.SUPPRESS and action.dest != "help":
                assert all(rf"\fB{option}\fR" in page for option in action.option_strings)
    assert "PREFIX" not in page[page.index("coreward completion") : page.index("coreward doctor")]


def test_the_manual_has_each_key_of_the_policy() -> None:
    page = policy().replace(r"\-", "-")
    keys = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "policy.md").read_text(), re.MULTILINE)
    assert len(keys) > 50
    for key in keys:
        assert rf"\fB{key}\fR" in page


def test_text_that_looks_like_a_request_is_text() -> None:
    assert of_markdown(".so /etc/passwd\n\n'x \\n-\n") == ("\\&.so /etc/passwd\n.PP\n\\&'x \\en\\-")


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
@pytest.mark.parametrize("page", [verbs, policy])
def test_the_manual_is_set_without_a_warning(page) -> None:  # type: ignore[no-untyped-def]
    done = subprocess.run(
        ["groff", "-man", "-Kutf8", "-Tutf8", "-ww"],
        input=page(),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    assert "SEE ALSO" in re.sub("\x08.", "", done.stdout)  # bold is typed twice


def test_the_manual_without_a_folder_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy.manual"])
    with pytest.raises(SystemExit, match=r"usage: python -m deploy.manual DIR"):
        write_manual()
