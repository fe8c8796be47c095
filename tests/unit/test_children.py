"""Children that are killed: reaped, or left behind where they do not end."""

from __future__ import annotations

import subprocess

import pytest

from collector.linux import children

PATIENCE = 60.0  # seconds; a test that waits as long has failed


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "infinity"])


def test_a_killed_child_is_reaped() -> None:
    child = sleeper()
    assert children.kill(child, PATIENCE)
    assert child.returncode == -9
    assert children.hanging() == 0
    # AND again, when it is gone
    assert children.kill(child, PATIENCE)


def test_a_child_that_has_ended_is_waited_for_no_longer() -> None:
    child = sleeper()
    assert not children.has_ended(child.pid, 0.01)
    child.kill()
    assert children.has_ended(child.pid, PATIENCE)
    child.wait()
    assert children.has_ended(child.pid, 0.0)


def test_one_that_does_not_end_is_left_behind_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a child that does not hear SIGKILL for a while (stopping the kernel is not possible
    # here, so the signal is kept back)
    child = sleeper()
    with monkeypatch.context() as patch:
        patch.setattr(child, "kill", lambda: None)
        # WHEN it is killed THEN nobody waits longer than said
        assert not children.kill(child, 0.01)
    assert children.hanging() == 1
    # WHEN it ends THEN it is reaped, and counts no more
    child.kill()
    assert children.has_ended(child.pid, PATIENCE)
    assert children.hanging() == 0
    assert child.returncode == -9
