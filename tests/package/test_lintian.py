"""The package keeps to Debian's policy; where it does not, `lintian-overrides` says why."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.system.victims import ROOT


@pytest.mark.skipif(shutil.which("lintian") is None, reason="no lintian here")
def test_lintian_has_nothing_to_say() -> None:
    (package,) = (ROOT / "build" / "deb").glob("coreward_*.deb")
    command = ["lintian", "--tag-display-limit", "0", "--fail-on", "error,warning", str(package)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]
    assert (done.returncode, said) == (0, []), done.stderr
