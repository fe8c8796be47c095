"""Which pod a cgroup path is of: paths of real nodes, and of processes that would mislead."""

from __future__ import annotations

import pytest

from collector.pods.cgroup import InPod, in_pod

UID = "0b9a6e1f-52c4-4a8e-9d0c-3f1a77c2d5e8"
UID_ = UID.replace("-", "_")
STATIC = "6dc8f2a7c0b94e1d8a35f7e2b1c4d690"  # of a static pod: a hash
ID = "4f1c" * 16
NODE = "9e2b" * 16  # of a container that is a node
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
KIND = f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice"
OWN = InPod(UID, ID, nested=False)


@pytest.mark.parametrize(
    "path",
    [
        # systemd's driver: burstable, best effort, guaranteed
        f"{BURSTABLE}/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
        f"/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"{BURSTABLE}/crio-{ID}.scope",
        f"{BURSTABLE}/docker-{ID}.scope",
        # with what crun makes below it, an init of the container's, and a service of that
        f"{BURSTABLE}/crio-{ID}.scope/container",
        f"{BURSTABLE}/cri-containerd-{ID}.scope/init.scope",
        f"{BURSTABLE}/cri-containerd-{ID}.scope/system.slice/db.service",
        # cgroupfs: containerd, CRI-O, docker
        f"/kubepods/burstable/pod{UID}/{ID}",
        f"/kubepods/besteffort/pod{UID}/{ID}",
        f"/kubepods/pod{UID}/{ID}",
        f"/kubepods/burstable/pod{UID}/crio-{ID}",
        f"/kubepods/burstable/pod{UID}/crio-{ID}/container",
        # cgroup v1, where systemd has started a containerd that does not use its driver
        f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
        f"/system.slice/containerd.service/kubepods-pod{UID_}.slice:cri-containerd:{ID}",
        # a kubelet with a root of its own, as in a node that sees its own hierarchy only
        f"/kubelet/kubepods/burstable/pod{UID}/{ID}",
        f"{KIND}/cri-containerd-{ID}.scope",
        # removed while a process that has ended was not reaped
        f"/kubepods/burstable/pod{UID}/{ID} (deleted)",
        # from another cgroup namespace
        f"/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"/../../pod{UID}/{ID}",
    ],
)
def test_a_container_of_a_pod(path: str) -> None:
    assert in_pod(path) == OWN


def test_a_static_pod() -> None:
    path = f"/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-{ID}.scope"
    assert in_pod(path) == InPod(STATIC, ID, nested=False)


@pytest.mark.parametrize(
    "path",
    [
        BURSTABLE,
        f"{BURSTABLE}/crio-conmon-{ID}.scope",  # CRI-O's monitor of a container
        f"{BURSTABLE}/kata_{ID}",
        f"/kubepods/pod{UID}/{ID}x",
        f"/kubepods/pod{UID}/{ID[:12]}",
    ],
)
def test_what_is_of_a_pod_and_of_none_of_its_containers(path: str) -> None:
    assert in_pod(path) == InPod(UID, None, nested=False)


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{NODE}/kubelet/kubepods/burstable/pod{UID}/{ID}",
        f"/docker/{NODE}{KIND}/cri-containerd-{ID}.scope",
        f"/system.slice/docker-{NODE}.scope{KIND}/cri-containerd-{ID}.scope",
        f"/machine.slice/libpod-{NODE}.scope/container{KIND}/cri-containerd-{ID}.scope",
    ],
)
def test_a_pod_of_a_node_that_is_a_container(path: str) -> None:
    # the last id is the container's; it is another kubelet's than the host's
    assert in_pod(path) == InPod(UID, ID, nested=True)


@pytest.mark.parametrize(
    "above",
    [
        "/user.slice/user-1000.slice/user@1000.service",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/k3s-rootless.service",
        "/user.slice/user-1000.slice/session-3.scope",
        "/system.slice/delegated.service",
        "/lxc.payload.web",
        "/lxc/web",
    ],
)
@pytest.mark.parametrize(
    "own", [f"/kubepods/pod{UID}/{ID}", f"/kubepods-pod{UID_}.slice:cri-containerd:{ID}"]
)
def test_cgroups_that_others_may_have_made_are_not_the_kubelets(above: str, own: str) -> None:
    assert in_pod(above + own) == InPod(UID, ID, nested=True)


@pytest.mark.parametrize(
    "below",
    [
        f"/kubepods/pod{STATIC}/{NODE}",
        f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{STATIC}.slice/crio-{NODE}.scope",
    ],
)
def test_what_a_container_makes_below_its_own_cgroup_gives_it_no_other_name(below: str) -> None:
    assert in_pod(f"{BURSTABLE}/cri-containerd-{ID}.scope{below}") == OWN


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/kubepods.slice",
        "/kubepods.slice/kubepods-burstable.slice",
        "/system.slice/kubelet.service",
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        f"/machine.slice/libpod_pod_{ID}.slice/libpod-{ID}.scope",
        # names that only look like it
        f"/user.slice/user-1000.slice/user@1000.service/pod{UID}/{ID}",
        f"/system.slice/mypod{UID_}.slice/cri-containerd-{ID}.scope",
        f"/notkubepods/pod{UID}/{ID}",
        f"/kubepods/pod{UID}\n/{ID}",
        f"/kubepods/pod{UID.upper()}/{ID}",
        f"/kubepods/pod{UID[:-1]}/{ID}",
        f"/kubepods/podx{UID}/{ID}",
        f"/kubepods/pod\udcff/{ID}",
        f"/kubepods/{'pod' * 2000}",
        "/kubepods/" + "-" * 3000 + "pod",
    ],
)
def test_what_is_no_pods(path: str) -> None:
    assert in_pod(path) is None
