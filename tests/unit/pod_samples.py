"""What a node has of its containers: bundles of containerd and CRI-O, docker's files, logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UID = "0b9a6e1f-52c4-4a8e-9d0c-3f1a77c2d5e8"
OTHER_UID = UID.replace("0b9a", "1c8d")  # of another pod
ID, SANDBOX = "4f1c" * 16, "7d32" * 16
CONTAINERD = "run/containerd/io.containerd.runtime.v2.task/k8s.io"
CRIO = "run/containers/storage/overlay-containers"
DOCKER = "var/lib/docker/containers"
CGROUP = f"/kubepods/burstable/pod{UID}/{ID}"
_KUBELETS = {
    "io.kubernetes.pod.name": "web-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": UID,
}


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def spec(**more: str) -> dict[str, Any]:
    """config.json as containerd writes it, with these annotations more."""
    names = {
        "container-name": "app",
        "container-type": "container",
        "image-name": "registry.example/shop/web:1.4",
        "sandbox-id": SANDBOX,
        "sandbox-name": "web-0",
        "sandbox-namespace": "shop",
        "sandbox-uid": UID,
    }
    own = {f"io.kubernetes.cri.{name}": text for name, text in names.items()}
    return {"ociVersion": "1.1.0", "process": {"args": ["web"]}, "annotations": {**own, **more}}


def containerd(root: Path, id: str = ID, **more: str) -> Path:
    """A container of containerd's."""
    file = root / CONTAINERD / id / "config.json"
    put(file, spec(**more))
    return file


def crio(root: Path) -> None:
    """A container of CRI-O's, and its pod's sandbox, which has the labels."""
    prefix = "io.kubernetes.cri-o."
    own = {**_KUBELETS, "io.kubernetes.container.name": "app"}
    annotations = {
        "coreward/collect": "false",
        "io.container.manager": "cri-o",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        f"{prefix}Annotations": json.dumps({"io.kubernetes.container.hash": "1f"}),
        f"{prefix}ContainerType": "container",
        f"{prefix}Image": "9a1b",
        f"{prefix}ImageName": "registry.example/shop/web:1.4",
        f"{prefix}Labels": json.dumps(own),
        f"{prefix}SandboxID": SANDBOX,
    }
    put(root / CRIO / ID / "userdata/config.json", {"annotations": annotations})
    labels = {**_KUBELETS, "io.kubernetes.container.name": "POD", "app": "web", "tier": "front"}
    given = {"coreward/collect": "false", "kubernetes.io/config.source": "api"}
    annotations = {
        **_KUBELETS,
        **given,
        f"{prefix}Annotations": json.dumps(given),
        f"{prefix}ContainerType": "sandbox",
        f"{prefix}Image": "registry.k8s.io/pause:3.9",
        f"{prefix}Labels": json.dumps(labels),
        f"{prefix}SandboxID": SANDBOX,
    }
    put(root / CRIO / SANDBOX / "userdata/config.json", {"annotations": annotations})


def docker(root: Path) -> None:
    """The same of cri-dockerd's."""
    own = {**_KUBELETS, "io.kubernetes.container.name": "app", "io.kubernetes.sandbox.id": SANDBOX}
    config = {"Labels": {**own, "maintainer": "somebody"}, "Image": "registry.example/shop/web:1.4"}
    put(root / DOCKER / ID / "config.v2.json", {"ID": ID, "Config": config})
    labels = {**_KUBELETS, "app": "web", "annotation.coreward/collect": "false"}
    config = {"Labels": labels, "Image": "registry.k8s.io/pause:3.9"}
    put(root / DOCKER / SANDBOX / "config.v2.json", {"ID": SANDBOX, "Config": config})


def logs(root: Path) -> None:
    """The names of log files."""
    folder = root / f"var/log/pods/shop_web-0_{UID}/app"
    put(folder / "0.log", "")
    link = root / f"var/log/containers/web-0_shop_app-{ID}.log"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / "0.log")
