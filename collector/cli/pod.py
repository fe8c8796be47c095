"""What `info` shows of the pod of Kubernetes that a process ran in."""

from __future__ import annotations

from collections.abc import Iterator

from collector.circumstances import Pod, PodSource

_UNNAMED = "its names were found neither with its container runtime nor in /var/log"


def pod_lines(pod: Pod | None) -> Iterator[tuple[str, object]]:
    """Label and value; a value of None is not shown."""
    if pod is None:
        return
    named = None if pod.name is None else f"{pod.namespace or '?'}/{pod.name}, "
    yield "pod", f"{named or ''}uid {pod.uid}, as its {_SAID[pod.source]} it"
    yield "pod's names", _UNNAMED if pod.source is PodSource.CGROUP else None
    ids = (pod.container, pod.container_id and pod.container_id[:12])
    yield "in the pod", ", ".join(one for one in ids if one) or None
    yield "image", pod.image
    yield "labels", _pairs(pod.labels)
    yield "annotations", _pairs(pod.annotations)


_SAID = {
    PodSource.CGROUP: "cgroup has",
    PodSource.BUNDLE: "runtime has",
    PodSource.LOGS: "log files have",
}


def _pairs(given: dict[str, str]) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in given.items()) or None
