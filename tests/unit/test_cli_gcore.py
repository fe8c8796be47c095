"""`coreward gcore`: what it is told, and what it says of a core that lacks something."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from collector.cli import gcore, main
from collector.elfcore.writer import WriteResult
from collector.redact.types import Redact
from collector.snapshot.write import Core, CoreContents

POLICY = "defaults: {redact: {mappings: [heap]}}\n"
RESULT = WriteResult(
    size=1, written=1, elided=0, unreadable=(), unreadable_bytes=0, stopped=None, marked=True
)
LACKING = Core(result=RESULT, truncated=True, lost="half of it", unseen="7 bytes are zero")


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Redact]:
    """What was to be redacted of each process that was taken; none is looked at."""
    found: list[Redact] = []

    def contents(**fields: Any) -> CoreContents:
        found.append(fields["redact"])
        return CoreContents(**fields)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gcore, "CoreContents", contents)
    monkeypatch.setattr(gcore, "live_probe", contextlib.nullcontext)
    monkeypatch.setattr(gcore, "take", lambda *_, **__: (LACKING, None))
    return found


@pytest.mark.parametrize("pid", ["\u00b2", "\u0663", "1" * 5000, "-1", "x", ""])
def test_what_is_no_pid(pid: str, taken: list[Redact], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gcore", "--", "--", pid]) == 1
    assert capsys.readouterr().err == f"Illegal process-id: {pid}.\n"
    assert taken == []


@pytest.mark.parametrize(
    ("words", "redacts"),
    [
        (["--config", "policy.yaml"], True),
        (["--config", "policy.yaml", "--unredacted"], False),
        (["--", "--config=policy.yaml"], True),
        (["--", "--config=policy.yaml", "--unredacted"], False),
    ],
)
def test_redaction_is_by_the_policy_unless_it_is_not_wanted(
    words: list[str], redacts: bool, taken: list[Redact], tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert main(["gcore", *words, "1"]) == 0
    assert taken == [Redact(mappings=("heap",)) if redacts else Redact()]


def test_what_the_core_lacks_is_said(
    taken: list[Redact], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gcore", "--unredacted", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == "Saved corefile core.1\n"
    assert said.err == (
        "coreward: core.1 is truncated: half of it\ncoreward: of core.1 7 bytes are zero\n"
    )
