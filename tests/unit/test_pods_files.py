"""The names of a pod, from what its runtime writes beside a container, and from its log files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from collector.circumstances import Pod, PodSource
from collector.pods import bundle
from collector.pods.cgroup import InPod
from collector.pods.files import PodFiles
from tests.unit.pod_samples import (
    CONTAINERD,
    DOCKER,
    ID,
    OTHER_UID,
    SANDBOX,
    UID,
    containerd,
    crio,
    docker,
    logs,
    put,
    spec,
)

ONE = InPod(UID, ID, nested=False)
BARE = Pod(uid=UID, container_id=ID, source=PodSource.CGROUP)
NAMED = Pod(
    uid=UID,
    container_id=ID,
    source=PodSource.BUNDLE,
    name="web-0",
    namespace="shop",
    container="app",
    image="registry.example/shop/web:1.4",
)
OPTED_OUT = {"coreward/collect": "false"}
BY_LOGS = replace(NAMED, source=PodSource.LOGS, image=None)


def test_containerd(tmp_path: Path) -> None:
    containerd(tmp_path, **OPTED_OUT)
    assert PodFiles(tmp_path).read(ONE) == replace(NAMED, annotations=OPTED_OUT)


@pytest.mark.parametrize(
    "folder",
    ["run/k3s/containerd", "run/k0s/containerd", "var/snap/microk8s/common/run/containerd"],
)
def test_distributions_have_containerd_elsewhere(folder: str, tmp_path: Path) -> None:
    put(tmp_path / folder / f"io.containerd.runtime.v2.task/k8s.io/{ID}/config.json", spec())
    assert PodFiles(tmp_path).read(ONE) == NAMED


def test_crio_has_the_labels_with_the_sandbox(tmp_path: Path) -> None:
    crio(tmp_path)
    labels = {"app": "web", "tier": "front"}
    assert PodFiles(tmp_path).read(ONE) == replace(NAMED, labels=labels, annotations=OPTED_OUT)


def test_docker_has_labels_and_annotations_with_the_sandbox(tmp_path: Path) -> None:
    docker(tmp_path)
    labels = {"app": "web"}
    assert PodFiles(tmp_path).read(ONE) == replace(NAMED, labels=labels, annotations=OPTED_OUT)
    # AND a sandbox that is gone, or another pod's, has nothing to say
    file = tmp_path / DOCKER / SANDBOX / "config.v2.json"
    file.write_text(file.read_text().replace(UID, OTHER_UID))
    assert PodFiles(tmp_path).read(ONE).annotations == {}


def test_names_of_log_files(tmp_path: Path) -> None:
    logs(tmp_path)
    assert PodFiles(tmp_path).read(ONE) == BY_LOGS
    # AND without the container's own, those of its pod
    (tmp_path / f"var/log/containers/web-0_shop_app-{ID}.log").unlink()
    assert PodFiles(tmp_path).read(ONE) == replace(BY_LOGS, container=None)
    whole = replace(BY_LOGS, container=None, container_id=None)
    assert PodFiles(tmp_path).read(InPod(UID, None, nested=False)) == whole


def test_a_bundle_says_more_than_logs(tmp_path: Path) -> None:
    logs(tmp_path)
    containerd(tmp_path)
    assert PodFiles(tmp_path).read(ONE) == NAMED


def test_a_pod_of_a_node_in_a_container_has_its_files_there(tmp_path: Path) -> None:
    containerd(tmp_path)
    logs(tmp_path)
    assert PodFiles(tmp_path).read(ONE._replace(nested=True)) == BARE


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"annotations": []}',
        '{"annotations": {"io.kubernetes.cri.sandbox-id": 7}}',
        '{"annotations": {"io.kubernetes.cri-o.Labels": "\\ud800"}}',
        "[" * 100_000,
        '{"annotations": {"a": "' + "x" * (1 << 20) + '"}}',
        spec(**{"io.kubernetes.cri.sandbox-uid": OTHER_UID}),
    ],
    ids=["empty", "cut", "list", "none", "kind", "number", "text", "deep", "long", "other"],
)
def test_a_bundle_that_says_nothing_of_this_pod(content: Any, tmp_path: Path) -> None:
    put(tmp_path / CONTAINERD / ID / "config.json", content)
    assert PodFiles(tmp_path).read(ONE) == BARE
    logs(tmp_path)
    assert PodFiles(tmp_path).read(ONE) == BY_LOGS


def test_no_link_is_followed_and_nothing_but_a_file_read(tmp_path: Path) -> None:
    # GIVEN what would be read, behind a link of the container's folder
    file = containerd(tmp_path / "elsewhere")
    folder = tmp_path / CONTAINERD / ID
    folder.parent.mkdir(parents=True)
    folder.symlink_to(file.parent)
    assert PodFiles(tmp_path).read(ONE) == BARE
    # AND of the file itself, AND a pipe, for which a reader would wait
    folder.unlink()
    folder.mkdir()
    (folder / "config.json").symlink_to(file)
    assert PodFiles(tmp_path).read(ONE) == BARE
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert PodFiles(tmp_path).read(ONE) == BARE


def test_links_above_count_as_the_root_has_them(tmp_path: Path) -> None:
    # GIVEN a host whose /var/lib/docker is elsewhere, seen from a container
    docker(tmp_path / "disk")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/docker").symlink_to("/disk/var/lib/docker")
    assert PodFiles(tmp_path).read(ONE).name == "web-0"


def test_hostile_names_are_none(tmp_path: Path) -> None:
    hostile = {
        "io.kubernetes.cri.sandbox-name": "web\x1b[31m",
        "io.kubernetes.cri.sandbox-namespace": "Shop",
        "io.kubernetes.cri.container-name": "a" * 300,
        "io.kubernetes.cri.image-name": "web latest",
    }
    containerd(tmp_path, **hostile)
    empty = replace(NAMED, name=None, namespace=None, container=None, image=None)
    assert PodFiles(tmp_path).read(ONE) == empty
    # AND so are those of log files
    other = "-".join(["9f1c" * 2, "9f1c", "9f1c", "9f1c", "9f1c" * 3])
    for name in (f"a_b_{other}", f"x_y_z_{other}", f"Shop_web_{other}", f"_{other}"):
        (tmp_path / "var/log/pods" / name).mkdir(parents=True)
        found = PodFiles(tmp_path).read(InPod(other, None, nested=False))
        assert (found.namespace, found.name) == (("a", "b") if name[0] == "a" else (None, None))
        (tmp_path / "var/log/pods" / name).rmdir()


def test_labels_and_annotations_are_bounded_and_those_for_us_come_first() -> None:
    many = {f"example.com/k{n:03}": "v" for n in range(100)}
    given = {**many, "coreward/collect": "true", "a": "x" * 257, "a b": "v", "b\n": "v", "": "v"}
    names = bundle.of_spec(json.dumps(spec(**given)).encode())
    assert names is not None
    assert list(names.annotations) == ["coreward/collect", *sorted(many)[:31]]
