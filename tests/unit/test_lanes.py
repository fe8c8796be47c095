"""`python -m tests`: what it is told to run."""

from __future__ import annotations

import pytest

from tests.__main__ import FOLDERS, main


def test_a_folder_that_is_no_part_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tests/sytem"]) == 2
    assert capsys.readouterr().err == f"tests/sytem: none of {', '.join(FOLDERS)}\n"
