"""Tests that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _named(document: Path) -> set[tuple[str, str | None]]:
    """Files of tests, each with the test in it, if that is named."""
    found = re.findall(r"\b(test_\w+\.py)(?:::(test_\w+))?", document.read_text())
    return {(file, test or None) for file, test in found}


def test_security_names_some() -> None:
    assert len(_named(ROOT / "docs" / "security.md")) > 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_they_are_there(document: Path) -> None:
    for file, test in _named(document):
        texts = [path.read_text() for path in (ROOT / "tests").glob(f"*/{file}")]
        assert any(f"def {test or ''}" in text for text in texts), (file, test)
