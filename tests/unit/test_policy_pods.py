"""What a configuration file may say of pods, and what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from collector.cli import main
from collector.errors import PolicyError
from collector.model import Cause
from collector.policy.facts import facts_of_living
from collector.policy.load import loads
from collector.policy.match import OPTED_OUT, Watcher
from collector.policy.types import KubernetesSettings, Match, PodDefault, RecorderSettings, Watch
from collector.store.store import Store
from collector.store.whose import service_of
from collector.watch.messages import Rules
from tests.unit.pod_samples import CGROUP, containerd
from tests.unit.store_samples import SEGFAULT
from tests.unit.test_pods_files import BARE, NAMED


def test_all_that_may_be_said() -> None:
    policy = loads(
        "kubernetes: {root: /host, default: out}\n"
        "rules:\n"
        "- name: a\n"
        "  match:\n"
        "    namespace: shop\n"
        "    pod: [web-*, api-*]\n"
        "    image: '*:1.?'\n"
        "    labels: {app: web, example.com/tier: [front, back]}\n"
        "    annotations: {team: c*}\n"
        "watch: [{name: w, match: {namespace: shop}}]\n",
        "f",
    )
    assert policy.kubernetes == KubernetesSettings(root="/host", default=PodDefault.OUT)
    assert policy.rules[0].match == Match(
        namespace=("shop",),
        pod=("web-*", "api-*"),
        image=("*:1.?",),
        labels=(("app", ("web",)), ("example.com/tier", ("front", "back"))),
        annotations=(("team", ("c*",)),),
    )
    assert policy.watch[0].match == Match(namespace=("shop",))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kubernetes: {default: no}", 'f:1: kubernetes.default: "no" is not one of in, out'),
        (
            "kubernetes: {root: host}",
            'f:1: kubernetes.root: "host" is not an absolute path of a directory',
        ),
        (
            "rules: [{name: a, match: {labels: app}}]",
            'f:1: rules[0].match.labels: expected globs by name, such as {app: web}, not "app"',
        ),
        (
            "rules: [{name: a, match: {labels: {}}}]",
            "f:1: rules[0].match.labels: has no name; expected globs by name, such as {app: web}",
        ),
        (
            "rules: [{name: a, match: {annotations: {a: true}}}]",
            'f:1: rules[0].match.annotations.a: is not text to YAML; quote it: "true"',
        ),
        (
            "rules:\n- name: a\n  match:\n    labels:\n      a: b\n      a: c",
            'f:6: rules[0].match.labels: "a" is given twice',
        ),
        (
            "rules: [{name: a, match: {namspace: x}}]",
            'f:1: rules[0].match.namspace: unknown key "namspace"; did you mean "namespace"?',
        ),
        (
            "dumpers: [{name: a, module: 'a:b', match: {pod: x}}]",
            "f:1: dumpers[0].match.pod: a dumper is not chosen by pod; its probe() may look at "
            "`cgroup`",
        ),
        (
            "rules: [{name: coreward/collect, match: {pod: x}}]",
            'f:1: rules[0].name: "coreward/collect" is reserved for what pods say',
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as raised:
        loads(text, "f")
    assert str(raised.value) == problem


def test_facts_of_the_living_have_the_names_of_their_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process in a pod
    containerd(tmp_path)
    monkeypatch.setattr("collector.linux.cgroupfs.path_in", lambda _: CGROUP)
    assert facts_of_living(os.getpid(), str(tmp_path)).of_pod == NAMED
    # AND rules match by them, in the flight recorder's process as well
    settings = KubernetesSettings(root=str(tmp_path))
    watch = Watch(name="w", match=Match(namespace=("shop",), labels=None))
    told = Rules(watch=(watch,), settings=RecorderSettings(), min_free=0, kubernetes=settings)
    rules = msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Rules)
    assert Watcher(rules.watch, rules.kubernetes).rule_of(os.getpid()) == watch
    out = replace(rules.kubernetes, default=PodDefault.OUT)
    assert Watcher(rules.watch, out).rule_of(os.getpid()) is None
    # AND one whose pod left nothing to read
    assert facts_of_living(os.getpid(), str(tmp_path / "none")).of_pod == BARE


def test_policy_test_says_what_would_happen_in_a_pod(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        "rules: [{name: shop, match: {namespace: shop, labels: {app: web}}, capture: record}]"
    )
    of_pod = ["--namespace", "shop", "--label", "app=web", "--label", "x=y=z"]
    assert main(["policy", "test", str(file), *of_pod]) == 0
    shown = capsys.readouterr().out
    assert "  namespace    shop\n  labels       app=web, x=y=z\n" in shown
    assert "  + shop: namespace is shop and labels is app=web\n" in shown
    # WHEN the pod has opted out
    out = ["--annotation", "coreward/collect=false", "--json"]
    assert main(["policy", "test", str(file), *of_pod, *out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["decision"]["rule"], found["decision"]["action"]["capture"]) == (
        OPTED_OUT,
        "none",
    )
    assert found["trials"] == [
        {"rule": OPTED_OUT, "matched": True, "why": "its pod has coreward/collect: false"}
    ]
    # AND a cgroup says which pod it is
    assert main(["policy", "test", str(file), "--cgroup", CGROUP, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["of_pod"]["uid"] == NAMED.uid


def test_list_finds_deaths_by_their_pod(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(tmp_path / "store")]
    with Store(tmp_path / "store", create=True) as store:
        for number, pod in enumerate((NAMED, replace(NAMED, name="api-0"), BARE, None)):
            store.put(replace(SEGFAULT, id=f"{number:016x}", pod=pod, cause=Cause.SIGNAL))

    def found(*filters: str) -> list[int]:
        assert main(["list", *place, "--json", *filters]) == 0
        return sorted(int(one["id"], 16) for one in json.loads(capsys.readouterr().out))

    assert found("--namespace", "sho*") == [0, 1]
    assert found("--namespace", "shop", "--pod", "web-[0-9]") == [0]
    assert found("--pod", "nobody") == []
    # AND info shows it
    assert main(["info", *place, f"{0:016x}"]) == 0
    shown = capsys.readouterr().out
    assert (
        "  pod           shop/web-0, uid 0b9a6e1f-52c4-4a8e-9d0c-3f1a77c2d5e8, as its runtime"
        in shown
    )
    assert "  image         registry.example/shop/web:1.4\n" in shown


def test_a_service_of_a_cluster_is_one_whatever_its_containers_are_called() -> None:
    # GIVEN a container that was started twice, in two pods of one deployment
    first = replace(SEGFAULT, uid=0, unit="cri-containerd-1.scope", pod=NAMED)
    other = replace(NAMED, name="web-1", uid="1")
    second = replace(first, unit="cri-containerd-2.scope", pod=other)
    # THEN their crashes are one service's in the store; of a pod without names there is the unit
    assert service_of(first) == service_of(second) == "pod shop/app"
    assert service_of(replace(first, pod=BARE)) == "cri-containerd-1.scope"
