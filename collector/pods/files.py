"""The files of a node from which the names of a pod are read, by the id of its container.

    bundle   what the runtime keeps of each container while there is one: `bundle` reads it
    logs     /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log and /var/log/pods/NAMESPACE_POD_UID,
             whose names say it; they are there until the pod is deleted

Folders are looked up below a root, which is `/`, or where a container has the host's; links count
as seen from there. Below them no link is followed. Sizes and numbers of names are bounded; time is
not: nobody waits for this but a thread of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from collector.circumstances import Pod, PodSource
from collector.linux.filesystems import open_beneath, read_beneath
from collector.pods import bundle
from collector.pods.bundle import Names
from collector.pods.cgroup import InPod

_TASKS = "io.containerd.runtime.v2.task/k8s.io"
_SPECS: dict[str, str] = {
    f"run/containerd/{_TASKS}": "config.json",
    f"run/k3s/containerd/{_TASKS}": "config.json",  # k3s and RKE2
    f"run/k0s/containerd/{_TASKS}": "config.json",
    f"var/snap/microk8s/common/run/containerd/{_TASKS}": "config.json",
    "run/containers/storage/overlay-containers": "userdata/config.json",  # CRI-O
}
_DOCKER = "var/lib/docker/containers"
FOLDERS = (*_SPECS, _DOCKER)  # each container of a runtime has a folder by its id in one of them
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOGS_OF_CONTAINERS, _LOGS_OF_PODS = "var/log/containers", "var/log/pods"
_MOST_BYTES = 1 << 20  # of one file; usual are some ten thousand
_MOST_NAMES = 16384  # in one folder


class PodFiles:
    """Those below one root. Thread-safe: nothing is kept."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def open(self, folder: str) -> int:
        """One of FOLDERS, to be watched and listed. OSError if there is none."""
        with _opened(self._root) as root:
            within = open_beneath(root, folder)
        try:
            return os.open(f"/proc/self/fd/{within}", _FOLDER)
        finally:
            os.close(within)

    def read(self, one: InPod) -> Pod:
        """All that can be had of it; a pod with its ids alone where there is nothing."""
        pod = Pod(uid=one.uid, container_id=one.container_id, source=PodSource.CGROUP)
        if one.nested:
            return pod
        with contextlib.suppress(OSError), _opened(self._root) as root:
            return _of_bundle(root, pod) or _of_logs(root, pod) or pod
        return pod

    def of_container(self, id: str) -> Pod | None:
        """The same of a container that has begun; None: it is no pod's, or says nothing yet."""
        with contextlib.suppress(OSError), _opened(self._root) as root:
            names = _names(root, id)
            if names is not None and names.uid is not None:
                bare = Pod(uid=names.uid, container_id=id, source=PodSource.CGROUP)
                return _named(root, bare, names)
        return None


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _of_bundle(root: int, pod: Pod) -> Pod | None:
    if pod.container_id is None:
        return None
    names = _names(root, pod.container_id)
    if names is None or names.uid not in (None, pod.uid):
        return None
    return _named(root, pod, names)


def _named(root: int, pod: Pod, names: Names) -> Pod:
    of_pod = names
    if names.sandbox is not None and names.sandbox != pod.container_id:
        sandbox = _names(root, names.sandbox)
        if sandbox is not None and sandbox.uid == pod.uid:
            of_pod = sandbox
    return replace(
        pod,
        source=PodSource.BUNDLE,
        name=names.name or of_pod.name,
        namespace=names.namespace or of_pod.namespace,
        container=names.container,
        image=names.image,
        labels=of_pod.labels,
        annotations={**names.annotations, **of_pod.annotations},
    )


def _names(root: int, id: str) -> Names | None:
    """What the first runtime that knows a container says of it."""
    for folder, file in _SPECS.items():
        found = _read(root, folder, f"{id}/{file}", bundle.of_spec)
        if found is not None:
            return found
    return _read(root, _DOCKER, f"{id}/config.v2.json", bundle.of_docker)


def _read(
    root: int, folder: str, file: str, parse: Callable[[bytes], Names | None]
) -> Names | None:
    try:
        within = open_beneath(root, folder)
    except OSError:
        return None
    try:
        text = read_beneath(within, file, _MOST_BYTES)
    finally:
        os.close(within)
    return None if text is None else parse(text)


def _of_logs(root: int, pod: Pod) -> Pod | None:
    """By the names of its log files: none of the three can have a `_` in it."""
    words: list[str] = []
    if pod.container_id is not None:
        found = _ending(root, _LOGS_OF_CONTAINERS, f"-{pod.container_id}.log")
        words = found.split("_") if found else []
    if len(words) == 3:
        name, namespace, container = map(bundle.checked_name, words)
    else:
        found = _ending(root, _LOGS_OF_PODS, f"_{pod.uid}")
        words = found.split("_") if found else []
        if len(words) != 2:
            return None
        namespace, name = map(bundle.checked_name, words)
        container = None
    if name is None or namespace is None:
        return None
    return replace(pod, source=PodSource.LOGS, name=name, namespace=namespace, container=container)


def _ending(root: int, folder: str, end: str) -> str | None:
    """The name in a folder that ends so, without that end."""
    try:
        within = open_beneath(root, folder)
    except OSError:
        return None
    try:
        listed = os.open(f"/proc/self/fd/{within}", _FOLDER)
    except OSError:
        return None
    finally:
        os.close(within)
    try:
        with os.scandir(listed) as entries:
            for entry in itertools.islice(entries, _MOST_NAMES):
                if entry.name.endswith(end):
                    return entry.name.removesuffix(end)
    except OSError:
        pass
    finally:
        os.close(listed)
    return None
