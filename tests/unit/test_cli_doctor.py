"""What `coreward doctor` says of core_pattern, without touching it."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.cli import doctor

APPORT = "|/usr/share/apport/apport -p%p -s%s"


@pytest.mark.parametrize(
    ("pattern", "takeover", "ok", "said"),
    [
        ("core", False, True, "'core'"),
        (APPORT, False, False, f"{APPORT!r}: another crash handler's; see hold.takeover"),
        (APPORT, True, True, f"{APPORT!r}: another crash handler's, which is to be replaced"),
        # an agent with places of its own is in the way whatever the policy says
        (
            "@@/run/other/core.sock",
            True,
            False,
            "'@@/run/other/core.sock': that of an agent with --run-dir /run/other, which has the "
            "crashes",
        ),
    ],
)
def test_another_crash_handler_matters_where_it_is_not_to_be_replaced(
    pattern: str,
    takeover: bool,
    ok: bool,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "core_pattern").write_text(f"{pattern}\n")
    monkeypatch.setattr(doctor, "SYSCTL", tmp_path)
    monkeypatch.setattr("collector.handoff.settings.LOCK", tmp_path / "lock")
    (check,) = doctor._settings(tmp_path / "run", takeover)
    assert (check.name, check.ok, check.detail) == ("core_pattern", ok, said)
