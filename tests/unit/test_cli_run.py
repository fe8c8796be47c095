"""How an agent starts: what takes time is done before anybody can wait for it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.agent.loop import Agent
from collector.cli import run
from collector.errors import HoldError
from collector.model import Capture, Outcome
from tests.unit.agent_fakes import FakeAgent
from tests.unit.store_samples import SEGFAULT


def test_the_past_is_caught_up_with_before_anything_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an agent that starts, and a hand-off that does not work
    order: list[str] = []

    def no_backend(*_: Any) -> None:
        order.append("backend")
        raise HoldError("it does not work here")

    class Native:
        def allow(self, **_: Any) -> None:
            order.append("allow")

        def expect(self, _: float) -> None:
            """How long a core takes is of no account here."""

        def bidders(self, rows: list[object]) -> None:
            assert rows == []  # no dumper is registered yet

    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    monkeypatch.setattr(run.logs, "set_up", lambda _, **__: None)
    monkeypatch.setattr(run.descriptors, "use_all", lambda: None)
    monkeypatch.setattr(run.descriptors, "make_room", lambda: None)
    monkeypatch.setattr("collector.handoff.settings.LOCK", tmp_path / "lock")
    monkeypatch.setattr(run, "Native", Native)
    monkeypatch.setattr(run, "Pins", lambda _: None)
    monkeypatch.setattr(
        run, "Agent", lambda _: argparse.Namespace(catch_up=lambda: order.append("caught up"))
    )
    monkeypatch.setattr(run, "_open_backend", no_backend)
    monkeypatch.setattr(run, "_keep_small", lambda: None)
    monkeypatch.setattr(run.gc, "freeze", lambda: None)
    config = tmp_path / "coreward.yaml"
    config.write_text("metrics: {listen: off}\n")
    parser = argparse.ArgumentParser()
    verb = run.RunVerb()
    verb.arguments(parser)
    args = parser.parse_args(
        ["--bpf", "none", "--config", str(config), "--run-dir", str(tmp_path / "run")]
    )
    args.store, args.store_given = tmp_path / "store", True
    # WHEN it comes to that
    with pytest.raises(HoldError, match="does not work here"):
        verb.run(args)
    # THEN it has done before what takes time
    assert order == ["caught up", "allow", "backend"]


def test_what_was_interrupted_is_said_with_one_flush_for_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN records that a killed agent has left open
    agent = FakeAgent(tmp_path, monkeypatch)
    for number in range(3):
        open_ = {"id": f"{number:016x}", "outcome": Outcome.PENDING, "reason": None, "frames": None}
        agent.store.put(msgspec.structs.replace(SEGFAULT, **open_))
    # WHEN the next one catches up
    Agent(agent.context).catch_up()
    # THEN it is left to the lane that writes many together
    assert agent.lanes.records.waiting == 3
    agent.settle()
    with agent.store as store:
        assert {(r.outcome, r.capture) for r in store.list()} == {(Outcome.FAILED, Capture.RECORD)}
        assert all(r.reason and "core" in r.lost for r in store.list())


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes announce deaths at the same time, also while the agent says that it is ready."""
    written: list[str] = []
    monkeypatch.setattr(
        run.sys, "stdout", argparse.Namespace(write=written.append, flush=lambda: None)
    )
    run.announce(SEGFAULT)
    run.announce(SEGFAULT)
    assert len(written) == 2
    assert all(line.endswith("]\n") and line.count("\n") == 1 for line in written)
