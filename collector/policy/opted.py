"""Whether a pod wants its deaths collected: what it says itself, what policy says of the others.

A pod says it by the annotation, or the label, COLLECT, as far as its container runtime tells it:
docs/kubernetes.md. What is on no pod is not asked.
"""

from __future__ import annotations

from collector.circumstances import Pod
from collector.policy.types import KubernetesSettings, PodDefault

COLLECT = "coreward/collect"
_YES, _NO = "true", "false"  # any other value says nothing


def opted_out(settings: KubernetesSettings, pod: Pod) -> str | None:
    """Why nothing is collected of the processes in this pod; None: it is."""
    said = pod.annotations.get(COLLECT, pod.labels.get(COLLECT))
    if said == _NO:
        return f"its pod has {COLLECT}: {_NO}"
    if settings.default is PodDefault.OUT and said != _YES:
        return f"its pod is not known to have {COLLECT}: {_YES}"
    return None
