"""Real deaths of one bug, one after the other: it is known to be one, and less is kept of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.victims import running

CONFIG = """
defaults: {capture: none}
rules:
  - name: collected
    match: {comm: [null_worker, heap_abort]}
    limit: none
    collect: {first: full, then: stacks, times: 1, after: record, period: 1h}
"""


@pytest.fixture(scope="module")
def collecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=CONFIG, metrics=True) as one:
        yield one


def died(one: RunningAgent, folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """The record of a victim that really died."""
    with running(name, *arguments, cwd=folder) as victim:
        victim.go()
        victim.wait()
        return one.record(victim.pid)


def test_a_bug_that_comes_again_is_known(collecting: RunningAgent, tmp_path: Path) -> None:
    # WHEN one program dies of one bug four times
    records = [died(collecting, tmp_path, "null_worker") for _ in range(3)]
    first = records[0]["signature"]
    said = collecting.command("note", first["id"], "fixed in 2.3", "--fixed-in", "2.3")
    assert said.startswith(f"{first['id']}: fixed in 2.3")
    records.append(died(collecting, tmp_path, "null_worker"))
    # THEN it is the same bug each time, the last ones by the place at which they died
    assert first["text"] == "SIGSEGV near-null | count_request"
    assert {record["signature"]["id"] for record in records} == {first["id"]}
    assert [record["signature"]["basis"] for record in records] == [
        *("frames", "frames", "place", "place")
    ]
    # AND less was kept each time
    assert [record["capture"] for record in records] == ["full", "stacks", "record", "record"]
    assert records[3]["frames"] is None
    assert records[3]["lost"]["frames"].endswith(f"others of signature {first['id']} did")
    # AND the last one has what a person wrote meanwhile, also in the agent's line
    assert records[3]["signature"]["note"] == "fixed in 2.3"
    assert any(line.endswith("[known: fixed in 2.3]") for line in collecting.lines)
    # AND another bug is another signature, of which the first is kept whole
    other = died(collecting, tmp_path, "heap_abort", "1")
    assert other["signature"]["text"].endswith("| check_invariant")
    assert (other["capture"], other["signature"]["id"] != first["id"]) == ("full", True)
    # AND both are counted
    found = {one["id"]: one for one in json.loads(collecting.command("signatures", "--json"))}
    assert {id: one["deaths"] for id, one in found.items()} == {
        first["id"]: 4,
        other["signature"]["id"]: 1,
    }
    assert found[first["id"]]["executables"] == [records[0]["exe"]]
    assert collecting.metric('coreward_signatures_total{seen="new"}') == 2
    assert collecting.metric('coreward_signatures_total{seen="again"}') == 3
    # AND all of that can be made anew from the records: nothing moves
    done = json.loads(collecting.command("signatures", "--rebuild", "--json"))
    assert (done["records"], done["moved"]) == (5, [])
