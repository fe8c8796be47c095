"""Which pod, and which container of it, a cgroup path is of. Pure.

The kubelet makes a cgroup for each pod below `kubepods`, the container runtime one for each
container in that: as folders (the driver cgroupfs), or as slices and scopes of systemd, whose names
repeat those above them and have `_` for `-`. All that is below a container's cgroup may be the
container's own choice (crun, CRI-O and an init in a container make cgroups there), so what stands
nearest to the root counts. A node that is itself a container, as kind's are, is no pod: the pod is
below it then. `nested` says that it is not certainly one of this host's own kubelet: also users,
and services to which systemd has delegated their cgroup, give names to cgroups.

Sources: the kubelet's pkg/kubelet/cm/cgroup_manager_linux.go (names of both drivers),
systemd.slice(5).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_HEX_ID = "[0-9a-f]{64}"
# a pod's uid; of a static pod, which a file on the node describes, 32 digits without separators
_UID = "[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_POD = re.compile(rf"(?P<above>[A-Za-z0-9_.-]*-)?pod(?P<uid>{_UID})(?:\.slice)?(?::(?P<rest>.*))?")
_KUBEPODS = re.compile(r"(?:[A-Za-z0-9_.-]*-)?kubepods(?:-[a-z]+)?(?:\.slice)?")
_CONTAINER = re.compile(
    rf"(?:(?:cri-containerd|crio|docker|libpod)-)?(?P<id>{_HEX_ID})(?:\.scope)?"
)
# containerd without systemd's driver although systemd has started it, on cgroup v1
_COLONS = re.compile(rf"(?:cri-containerd|crio|docker):(?P<id>{_HEX_ID})")
_RUNTIME = re.compile(r"(?:containerd|docker|crio|k3s(?:-agent)?|rke2-(?:server|agent))\.service")
_ANY_ID = re.compile(rf"(?<![0-9a-f]){_HEX_ID}(?![0-9a-f])")
_UNITS = (".service", ".scope")  # of systemd, that may have made what is below them
_LXC = re.compile(r"lxc(?:\..*)?")  # its containers have names of people, and a cgroup of their own
_DELETED = " (deleted)"  # says the kernel of a cgroup that a process has outlived: cgroups(7)
_LONGEST = 4096  # characters of a path, PATH_MAX


class InPod(NamedTuple):
    """What a cgroup path says."""

    uid: str  # with `-`
    container_id: str | None  # None: of the pod as a whole, as its runtime's monitor
    nested: bool  # below a container, or where others make cgroups: no pod of this node's kubelet


def in_pod(path: str) -> InPod | None:
    """None: it is no pod's."""
    if "pod" not in path or len(path) > _LONGEST:
        return None
    parts = path.removesuffix(_DELETED).strip("/").split("/")
    for index, part in enumerate(parts):
        found = _POD.fullmatch(part)
        if found is None or not _is_kubelets(found["above"] or "", parts[:index]):
            continue
        above = parts[:index]
        if found["rest"] is not None:
            container = _COLONS.fullmatch(found["rest"])
            if above[-1:] and _RUNTIME.fullmatch(above[-1]):
                del above[-1]
        else:
            container = _CONTAINER.fullmatch(parts[index + 1]) if parts[index + 1 :] else None
        return InPod(
            uid=found["uid"].replace("_", "-"),
            container_id=None if container is None else container["id"],
            nested=any(_others_make_cgroups_in(one) for one in above),
        )
    return None


def _others_make_cgroups_in(part: str) -> bool:
    return bool(_ANY_ID.search(part) or part.endswith(_UNITS) or _LXC.fullmatch(part))


def _is_kubelets(prefix: str, above: list[str]) -> bool:
    """Whether a pod's cgroup lies where the kubelet makes them; of a process in another cgroup
    namespace the way there is not told, only `..`."""
    if _KUBEPODS.fullmatch(prefix.removesuffix("-")):
        return True
    return bool(above) and (
        any(_KUBEPODS.fullmatch(part) for part in above) or all(part == ".." for part in above)
    )
