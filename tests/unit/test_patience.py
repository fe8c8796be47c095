"""How long a child is waited for, while it runs, sleeps, or waits for a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from collector.linux import patience
from collector.linux.patience import BUSY, Patience


def left_after(monkeypatch: pytest.MonkeyPatch, state: str, ticks_each_s: int) -> int:
    """Seconds until a patience of 20 seconds is over, for a child that is always so."""
    now = 100

    def stat(_: str) -> bytes:
        return b"7 (x) %s 1 1 1 0 -1 0 0 0 0 0 %d 0 0 0 20 0 1 0 5 %s" % (
            state.encode(),
            ticks_each_s * (now - 100),
            b"0 " * 40,
        )

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: float(now)))
    monkeypatch.setattr(patience.procfs, "read", stat)
    one = Patience(7, 20.0)
    while one.left():
        now += 1
    return now - 100


def test_a_child_that_sleeps_has_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_after(monkeypatch, "D", 0) == 20


def test_a_child_that_runs_has_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_after(monkeypatch, "R", 100) == 20


def test_a_child_that_gets_no_cpu_has_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # a quarter of a CPU: four times as long; next to none: up to the bound
    assert left_after(monkeypatch, "R", 25) == 80
    assert left_after(monkeypatch, "R", 1) == 20 * BUSY
