"""What systemd is asked: of a stand-in for systemctl(1), for this host may have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.cli import doctor
from collector.errors import CorewardError
from collector.linux import systemd


def systemctl(folder: Path, lines: str) -> str:
    """A program that says what systemctl would."""
    program = folder / "systemctl"
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("says", "job"),
    [
        ("echo '931 coreward.service restart running'", "restart"),
        ("echo '931 coreward.service stop running'", "stop"),
        (
            "echo '930 other.service stop running'; echo '931 coreward.service start waiting'",
            "start",
        ),
        ("echo '930 other.service stop running'", None),
        ("echo 'No jobs running.'", None),
        ("true", None),
        ("echo coreward.service", None),
    ],
)
def test_the_job_of_a_unit(tmp_path: Path, says: str, job: str | None) -> None:
    assert systemd.job_of("coreward.service", program=systemctl(tmp_path, says)) == job


@pytest.mark.parametrize(
    ("says", "is_restarted"),
    [
        ("echo '931 coreward.service restart running'", True),
        ("true", True),  # it has ended by itself: Restart=always
        ("echo '931 coreward.service stop running'", False),
        ("exit 1", False),  # nobody knows: nobody is to wait for the next agent
    ],
)
def test_settings_stay_only_where_the_unit_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, is_restarted: bool
) -> None:
    systemctl(tmp_path, says)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(systemd, "is_init", lambda: True)
    assert doctor._is_restarted("coreward.service") == is_restarted


def test_one_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    program = systemctl(tmp_path, "exec sleep 60")
    with pytest.raises(CorewardError, match=r"did not answer within 0\.05 s"):
        systemd.job_of("coreward.service", program=program, seconds=0.05)
