"""Of which pod of Kubernetes a process was, by its cgroup: facts for policy and for the record.

Names come from what `pods.known` has read when the container began. While a process waits for its
release nothing else is looked at; names that are missing then are looked for when it has ended.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from collector.agent.context import Context
from collector.agent.crash import Crash
from collector.agent.facts import InPod
from collector.circumstances import PodSource
from collector.pods.cgroup import in_pod
from collector.policy.types import Facts

_OF_A_NODE = "var/log/pods"  # the kubelet makes it


def learn_of_pods(context: Context) -> None:
    """On a node of Kubernetes: know the containers that there are, and those that begin."""
    if Path(context.policy.policy.kubernetes.root, _OF_A_NODE).is_dir():
        context.pods.start()


def with_pod(context: Context, facts: Facts, *, waits: bool) -> Facts:
    """The facts with those of its pod, if it was in one. waits: the process does, for us."""
    if facts.cgroup is None or in_pod(facts.cgroup) is None:
        return facts
    look = context.pods.known if waits else context.pods.find
    return replace(facts, of_pod=look(facts.cgroup))


def name_pod(context: Context, crash: Crash) -> None:
    """Look for the names that nobody could wait for; to be called when the process has ended."""
    pod = crash.record.pod
    if pod is None or pod.source is not PodSource.CGROUP:
        return
    found = context.pods.find(crash.record.cgroup)
    if found is not None and found.source is not PodSource.CGROUP:
        crash.learn(InPod(pod=found))
