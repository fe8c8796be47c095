"""`deploy/kubernetes` against the schemas of Kubernetes, and against the program that it runs.

The schemas are the strict ones of the package kubernetes-validate, which `make unit` unpacks into
build/kubernetes: a key that Kubernetes does not know is an error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import referencing.jsonschema
import yaml

from collector.cli import load as verb
from collector.policy.load import load
from collector.policy.types import PodDefault, Takeover

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "deploy/kubernetes"
SCHEMAS = ROOT / "build/kubernetes/kubernetes_validate/kubernetes-json-schema"
VERSIONS = ("v1.22.0", "v1.30.0")
FILES = {"DaemonSet": "daemonset-apps-v1", "Namespace": "namespace-v1"}
RUN_DIR = "/run/coreward.kubernetes"  # not that of the service, which goes with the service
SOCKET = f"{RUN_DIR}/health.sock"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text())
    return found


@pytest.fixture
def spec() -> dict[str, Any]:
    """Of the pod."""
    found: dict[str, Any] = document("daemonset.yaml")["spec"]["template"]["spec"]
    return found


def validator(version: str, kind: str) -> Any:
    folder = SCHEMAS / f"{version}-local-strict"
    assert folder.is_dir(), "make build/kubernetes/.ready"

    def retrieve(uri: str) -> referencing.Resource[Any]:
        return referencing.Resource.from_contents(
            json.loads((folder / Path(uri).name).read_text()),
            default_specification=referencing.jsonschema.DRAFT7,
        )

    registry: referencing.Registry[Any] = referencing.Registry(retrieve=retrieve)  # type: ignore[call-arg]
    schema = json.loads((folder / f"{FILES[kind]}.json").read_text())
    return jsonschema.Draft7Validator(schema, registry=registry)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["daemonset.yaml", "namespace.yaml"])
def test_kubernetes_knows_every_key(version: str, name: str) -> None:
    one = document(name)
    check = validator(version, one["kind"])
    assert [error.message for error in check.iter_errors(one)] == []
    # AND would say so otherwise
    one["spec"] = {**one.get("spec", {}), "selctor": {}}
    assert list(check.iter_errors(one))


def test_the_kustomizations_name_what_there_is() -> None:
    # GIVEN the two of them
    base, undo = document("kustomization.yaml"), document("undo/kustomization.yaml")
    # THEN each file is used, and there
    listed = [*base["resources"], *base["configMapGenerator"][0]["files"], "kustomization.yaml"]
    assert sorted(listed) == sorted(file.name for file in HERE.iterdir() if file.is_file())
    assert undo["resources"] == [".."]
    assert [one["path"] for one in undo["patches"]] == ["daemonset.yaml"]
    # AND the names that they change are those of the DaemonSet
    daemons, patch = document("daemonset.yaml"), document("undo/daemonset.yaml")
    volumes = {one["name"]: one for one in daemons["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == base["configMapGenerator"][0]["name"]
    assert base["namespace"] == document("namespace.yaml")["metadata"]["name"]
    assert patch["metadata"] == {"name": daemons["metadata"]["name"], "namespace": "coreward"}
    image = base["images"][0]["name"]
    for kind in ("initContainers", "containers"):
        own, changed = (one["spec"]["template"]["spec"][kind] for one in (daemons, patch))
        assert [one["name"] for one in own] == [one["name"] for one in changed]
        assert [one["image"] for one in own] == [image]


def test_what_it_runs_takes_its_arguments(spec: dict[str, Any]) -> None:
    patch = document("undo/daemonset.yaml")["spec"]["template"]["spec"]
    calls = [one["args"] for one in (*spec["initContainers"], *spec["containers"])]
    calls.append(patch["initContainers"][0]["args"])
    assert [call[0] for call in calls] == ["doctor", "run", "doctor"]
    for name, *arguments in calls:
        parser = argparse.ArgumentParser(exit_on_error=False)
        verb(name).arguments(parser)
        assert str(parser.parse_args(arguments).run_dir) == RUN_DIR
    # AND the agent that is checked has the configuration of the one that runs
    assert calls[0][-1] == calls[1][-1]


def test_probes_ask_where_the_configuration_has_the_socket(spec: dict[str, Any]) -> None:
    policy = load(HERE / "coreward.yaml")
    (agent,) = spec["containers"]
    assert str(policy.health.socket) == SOCKET
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        python, m, module, *options = agent[kind]["exec"]["command"]
        assert (python, m, options[-1]) == ("/usr/lib/coreward/bin/python3", "-m", SOCKET)
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        assert options[:-1] == (["--ready"] if kind == "readinessProbe" else [])
    # AND what is measured is served where the port is
    assert policy.metrics_listen == ("0.0.0.0", agent["ports"][0]["containerPort"])
    assert policy.hold.takeover is Takeover.KEEP
    assert policy.kubernetes.default is PodDefault.IN


def test_it_has_of_the_host_what_it_needs_and_no_more(spec: dict[str, Any]) -> None:
    (check,), (agent,) = spec["initContainers"], spec["containers"]
    # GIVEN what is checked and what runs, THEN both have the same of the node
    for key in ("image", "securityContext", "resources", "volumeMounts"):
        assert check[key] == agent[key]
    # AND at the same place, for the kernel names the host's paths; but for what it writes
    mounts = {one["name"]: one for one in agent["volumeMounts"]}
    of_host = {one["name"]: one["hostPath"] for one in spec["volumes"] if "hostPath" in one}
    assert {one["path"] for one in of_host.values()} == {
        "/run",
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
        "/var/lib/coreward-kubernetes",
        "/var/log/pods",
        "/var/log/containers",
    }
    for name, path in of_host.items():
        assert mounts[name]["mountPath"] == path["path"].removesuffix("-kubernetes")
        assert mounts[name].get("readOnly", False) == path["path"].startswith("/var/log/")
    assert mounts.keys() == {one["name"] for one in spec["volumes"]}
    # AND of its namespaces that of pids alone
    assert [key for key in spec if key.startswith("host")] == ["hostPID"]
    assert spec["automountServiceAccountToken"] is False
    # AND it ends within the time that it takes to finish
    assert spec["terminationGracePeriodSeconds"] >= 90
