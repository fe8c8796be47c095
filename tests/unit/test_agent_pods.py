"""A death in a pod: its names are in the record, and no process waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.agent.pods import learn_of_pods
from collector.circumstances import PodSource
from collector.linux import cgroupfs
from tests.unit import agent_fakes
from tests.unit.agent_fakes import FakeAgent, agents
from tests.unit.event_samples import ended, fatal
from tests.unit.pod_samples import CGROUP, containerd, logs
from tests.unit.test_pods_files import BARE, BY_LOGS, NAMED
from tests.unit.test_pods_known import PATIENCE, wait_until

Make = Callable[..., FakeAgent]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    texts = {**agent_fakes._TEXTS, "cgroup": f"0::{CGROUP}\n".encode()}
    monkeypatch.setattr(agent_fakes, "_TEXTS", texts)
    monkeypatch.setattr("collector.pods.known.PATIENCE_S", PATIENCE)
    with agents(tmp_path, monkeypatch) as maker:

        def make(policy: str = "") -> FakeAgent:
            agent = maker(f"kubernetes: {{root: {tmp_path}}}\n{policy}")
            made.append(agent)
            return agent

        made: list[FakeAgent] = []
        yield make
        for agent in made:
            agent.context.pods.close()


def dies(agent: FakeAgent, **how: Any) -> None:
    agent.probe.tell(fatal())
    agent.hand_over(**how)
    agent.probe.tell(ended())
    agent.settle()


def test_a_crash_that_was_released(make: Make, tmp_path: Path) -> None:
    containerd(tmp_path)
    agent = make()
    dies(agent)
    assert agent.record().pod == NAMED


def test_samples_of_a_pod_whose_rule_redacts(make: Make, tmp_path: Path) -> None:
    # GIVEN a policy that watches a namespace, and redacts what dies
    containerd(tmp_path)
    agent = make(
        "defaults: {redact: {mappings: [heap]}}\nwatch: [{name: w, match: {namespace: shop}}]\n"
    )
    # THEN its samples are not kept, which is said
    dies(agent)
    assert agent.record().lost["samples"] == "not kept: the stacks in them cannot be redacted"


def test_names_of_one_that_is_held_are_looked_for_when_it_has_ended(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process that waits for its core to be written
    containerd(tmp_path)
    agent = make("defaults: {release: after-write}")
    find = agent.context.pods.find

    def log(cgroup: str) -> Any:
        agent.log.append("names")
        return find(cgroup)

    monkeypatch.setattr(agent.context.pods, "find", log)
    agent.probe.tell(fatal())
    agent.hand_over(pinned=False)
    agent.settle()
    agent.probe.tell(ended())
    agent.settle()
    # THEN its names are looked for behind that
    assert agent.log == ["written as full", "released", "names"]
    assert agent.record().pod == NAMED


def test_a_death_that_nobody_held(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs(tmp_path)
    monkeypatch.setattr(cgroupfs, "path_of", lambda _: CGROUP)
    agent = make("defaults: {routine: record}")
    agent.probe.tell(fatal(signal=9), ended(status=9))
    agent.settle()
    assert agent.record().pod == BY_LOGS


def test_without_names_there_are_the_ids(make: Make) -> None:
    agent = make()
    dies(agent)
    assert agent.record().pod == BARE


def test_an_agent_on_a_node_knows_its_containers_from_the_start(make: Make, tmp_path: Path) -> None:
    # GIVEN a host without a kubelet, and a node
    agent = make()
    learn_of_pods(agent.context)
    assert "pods" not in vars(agent.context)
    containerd(tmp_path)
    (tmp_path / "var/log/pods").mkdir(parents=True)
    # WHEN it starts there, THEN it knows them before anything dies
    learn_of_pods(agent.context)
    wait_until(lambda: agent.context.pods.known(CGROUP) != BARE)
    pod = agent.context.pods.known(CGROUP)
    assert pod is not None and pod.source is PodSource.BUNDLE
