"""When the agent has the store trimmed, and what it makes of what comes of that."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from collector.agent import retain
from collector.agent.context import Context
from collector.agent.retain import Retention, limits_of
from collector.export.metrics import Metrics
from collector.policy.holder import PolicyHolder
from collector.policy.types import StoreSettings
from collector.store.limits import Limits
from collector.store.store import Store
from tests.unit.store_samples import numbered


def in_seconds(retention: Retention) -> int:
    return round(retention.timeout_ms / 1e3)


def test_it_runs_when_there_is_reason_to() -> None:
    # GIVEN an agent that has just started
    retention = Retention()
    assert in_seconds(retention) == 30
    # WHEN it has run and nothing happens THEN it looks seldom
    retention._last, retention._deaths = time.monotonic(), 0
    assert in_seconds(retention) == 3600
    # AND soon once there are deaths, sooner with many
    retention.note()
    assert in_seconds(retention) == 60
    for _ in range(500):
        retention.note()
    assert in_seconds(retention) == 5


def test_shares_are_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SimpleNamespace(f_blocks=1000, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda path: space)
    settings = StoreSettings(keep_free=5 << 20, max_age=7200.0)
    assert limits_of(settings, tmp_path) == Limits(
        max_size=409_600, max_records=100_000, max_age=7200.0, keep_free=5 << 20
    )


@pytest.fixture
def context(tmp_path: Path) -> Context:
    policy = tmp_path / "policy.yaml"
    policy.write_text("store: {max_records: 2}")
    with Store(tmp_path / "store", create=True) as store:
        for number in range(5):
            store.put(numbered(number, reason="it died"))
        return cast(
            Context,
            SimpleNamespace(policy=PolicyHolder(policy), store=store, metrics=Metrics()),
        )


def run(retention: Retention, context: Context) -> None:
    """Begin a run, and wait for its end."""
    retention._last = float("-inf")
    retention.look(context)
    if retention._child is not None:
        retention._child.wait()
        retention.look(context)
    assert retention._child is None


def sample(context: Context, name: str, **labels: str) -> float | None:
    return context.metrics.registry.get_sample_value(name, cast(Any, labels))


def test_a_run_removes_and_is_counted(context: Context) -> None:
    run(Retention(), context)
    with Store(context.store.path, create=False) as store:
        assert [record.start_ns for record in store.list()] == [4, 0]
    removed = "coreward_store_records_removed_total"
    assert sample(context, removed, limit="max_records") == 3
    assert (sample(context, "coreward_store_removed_bytes_total") or 0) >= 3 * 4096


def test_a_run_that_fails_is_counted_and_tried_again(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context.store.path.rename(context.store.path.with_name("moved"))
    monkeypatch.setattr(retain, "limits_of", lambda *_: Limits(max_records=1))
    retention = Retention()
    for count in (1, 2):
        run(retention, context)
        assert sample(context, "coreward_errors_total", stage="retention") == count
    assert "no store there" in caplog.text


def test_without_limits_nothing_is_run(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "limits_of", lambda *_: Limits())
    retention = Retention()
    run(retention, context)  # once, for an index of an older version
    assert retention._has_run
    monkeypatch.setattr("collector.linux.children.start", pytest.fail)
    run(retention, context)
