"""What the agent counts is what happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from collector.export.known import signal_label
from collector.model import Cause
from tests.system.agents import RunningAgent, agent, deaths_of
from tests.system.victims import Victim, running

CONFIG = """
defaults: {limit: none}
rules:
  - {name: held, match: {exe: "*/null_worker"}, release: after-write}
  - {name: unwanted, match: {exe: "*/divide"}, capture: none}
"""


def die(one: RunningAgent, victim: Victim) -> None:
    victim.go()
    victim.wait()
    one.wait_record(victim.pid)


def test_what_is_counted(tmp_path: Path) -> None:
    # GIVEN an agent that has counted nothing
    with agent(tmp_path, config=CONFIG, metrics=True) as one:
        # WHEN programs die in several ways
        for name in ("null_main", "null_main", "null_worker", "illegal"):
            with running(name, cwd=tmp_path) as victim:
                die(one, victim)
        with running("divide", cwd=tmp_path) as unwanted:
            unwanted.go()
            unwanted.wait()
        with running("wait_for_kill", cwd=tmp_path) as victim:
            victim.process.kill()
            victim.wait()
            one.wait_record(victim.pid)
        samples, records = one.accounts()
    # THEN deaths are counted by cause, outcome and signal, also those that nobody wanted
    deaths = Counter(
        (r["cause"], r["outcome"], signal_label(Cause(r["cause"]), r["signal"])) for r in records
    )
    deaths["signal", "ignored", "SIGFPE"] += 1
    assert deaths_of(samples) == {
        f'coreward_deaths_total{{cause="{cause}",outcome="{outcome}",signal="{signal}"}}': number
        for (cause, outcome, signal), number in deaths.items()
    }
    # AND times and bytes are those of the records
    held = Counter(r["release"] for r in records if r["release"])
    assert held["instant"] >= 3
    assert held["after-write"] == 1
    for release, number in held.items():
        name = "coreward_hold_duration_seconds"
        assert samples[f'{name}_count{{release="{release}"}}'] == number
        seconds = sum(r["held_ms"] for r in records if r["release"] == release) / 1e3
        assert abs(samples[f'{name}_sum{{release="{release}"}}'] - seconds) < 0.001
    sizes = [r["core_size"] for r in records if r["core"]]
    assert samples["coreward_capture_duration_seconds_count"] == len(sizes)
    assert samples["coreward_core_written_bytes_total"] == sum(sizes) > 0
    assert samples["coreward_core_elided_bytes_total"] > 0
    # AND nothing was lost on the way
    dropped = {
        name: n
        for name, n in samples.items()
        if name.startswith("coreward_probe_events_dropped_total")
    }
    assert dropped == {
        f'coreward_probe_events_dropped_total{{program="{program}"}}': 0
        for program in (
            "armed",
            "mappings",
            "mark_victim",
            "overwritten",
            "sched_process_exit",
            "started",
            "undecodable",
        )
    }


def test_pins_are_seen_while_they_hold(tmp_path: Path) -> None:
    # GIVEN an agent that is busy with the memory of a dead process
    config = "defaults: {compress: {codec: zstd, level: 9}}"
    with agent(tmp_path, config=config, metrics=True) as one:
        with running("resident", "256", "2", "random", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
            # WHEN its metrics are read before that is on disk
            open_pins = one.metric("coreward_pins_open")
            pinned = one.metric("coreward_pinned_bytes")
        # THEN they tell of the pin and of what it keeps
        assert open_pins == 1
        assert 256 << 20 <= pinned < 300 << 20
        # AND of nothing any more when the core is written
        one.wait_record(victim.pid)
        assert one.metric("coreward_pins_open") == 0
        assert one.metric("coreward_pinned_bytes") == 0
