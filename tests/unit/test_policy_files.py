"""What is shipped beside the code: the default file, the worked examples, the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from collector.model import Capture, Cause, Release
from collector.policy.load import keys, load, loads
from collector.policy.match import arm_rule, decide, watch_rule
from collector.policy.types import Facts, Policy
from collector.redact.rules import Rules
from tests.unit.test_pods_files import NAMED

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config/default.yaml"
EXAMPLES = ROOT / "config/examples"
JAVA = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java"
POSTGRES = "/usr/lib/postgresql/15/bin/postgres"
POD = (
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1.scope"
)


def test_the_default_file_says_what_holds_without_a_file() -> None:
    assert load(DEFAULT) == Policy(source=str(DEFAULT))


OF_A_RULE = ("rules[]", "watch[]", "arm.rules[]", "trace[]", "dumpers[]", "hooks[]", "sinks.otlp.")


def test_the_default_file_names_every_setting() -> None:
    # GIVEN every key that is not of a rule, WHEN looking for it in the default file
    words = {line.strip().split(":")[0] for line in DEFAULT.read_text().splitlines()}
    wanted = {key.rsplit(".", 1)[-1] for key in keys() if not key.startswith(OF_A_RULE)}

    # THEN none is missing: the file can be edited without the reference
    assert wanted - words == set()


@pytest.mark.parametrize(
    ("file", "facts", "decided"),
    [
        ("database", Facts(cause=Cause.SIGNAL, exe=POSTGRES), ("database", Capture.STACKS)),
        ("database", Facts(cause=Cause.OOM, exe="/bin/x"), ("out-of-memory", Capture.RECORD)),
        ("database", Facts(cause=Cause.SIGNAL, unit="vault.service"), ("keys", Capture.RECORD)),
        ("database", Facts(cause=Cause.SIGNAL, exe="/bin/x"), ("defaults", Capture.FULL)),
        (
            "flight-recorder",
            Facts(cause=Cause.SIGNAL, exe=POSTGRES),
            ("database", Capture.STACKS),
        ),
        (
            "kubernetes-node",
            Facts(cause=Cause.KILLED, cgroup=POD, container=True),
            ("killed-pods", Capture.RECORD),
        ),
        (
            "kubernetes-node",
            Facts(cause=Cause.SIGNAL, cgroup=POD, container=True),
            ("pods", Capture.FULL),
        ),
        (
            "kubernetes-node",
            Facts(cause=Cause.SIGNAL, cgroup="/kubepods/pod1/c", container=True),
            ("guaranteed-pods", Capture.FULL),
        ),
        (
            "kubernetes-node",
            Facts(cause=Cause.SIGNAL, cgroup=POD, of_pod=replace(NAMED, namespace="payment-eu")),
            ("payment", Capture.RECORD),
        ),
        (
            "kubernetes-node",
            Facts(cause=Cause.SIGNAL, unit="kubelet.service", container=False),
            ("node-agents", Capture.FULL),
        ),
        (
            "services",
            Facts(cause=Cause.EXIT, unit="web@2.service"),
            ("named-exits", Capture.RECORD),
        ),
        ("services", Facts(cause=Cause.EXIT, unit="cron.service"), ("defaults", Capture.NONE)),
        (
            "services",
            Facts(cause=Cause.SIGNAL, unit="importer.service"),
            ("crash-loop", Capture.FULL),
        ),
        ("services", Facts(cause=Cause.SIGNAL, exe="/tmp/a", signal=6), ("scratch", Capture.NONE)),
        (
            "java",
            Facts(cause=Cause.SIGNAL, exe=JAVA, unit="search.service"),
            ("java-zgc", Capture.FULL),
        ),
        (
            "java",
            Facts(cause=Cause.SIGNAL, exe=JAVA, unit="shop.service"),
            ("java", Capture.STACKS),
        ),
        ("java", Facts(cause=Cause.EXIT, exe=JAVA), ("java-exit", Capture.RECORD)),
        (
            "redaction",
            Facts(cause=Cause.SIGNAL, unit="payment@2.service"),
            ("payment", Capture.FULL),
        ),
    ],
)
def test_an_example_decides_as_it_says(
    file: str, facts: Facts, decided: tuple[str, Capture]
) -> None:
    decision = decide(load(EXAMPLES / f"{file}.yaml"), facts)
    assert (decision.rule, decision.action.capture) == decided


def test_every_example_is_among_those_tested() -> None:
    names = sorted(path.stem for path in EXAMPLES.iterdir())
    assert names == [
        "armed",
        "database",
        "flight-recorder",
        "java",
        "kubernetes-node",
        "redaction",
        "services",
    ]


def test_the_redaction_example_finds_what_it_says() -> None:
    policy = load(EXAMPLES / "redaction.yaml")
    facts = Facts(cause=Cause.SIGNAL, unit="payment.service")
    payment = decide(policy, facts).action.redact
    text = (
        b"4000123412341234 4000 1234 1234 1234 GET /\r\nAuthorization: Bearer abc.def\r\n"
        b"-----BEGIN RSA PRIVATE KEY-----\nMII=\n-----END DB_PASSWORD=hunter2\0"
    )
    assert sorted((hit.rule, text[hit.start : hit.end]) for hit in Rules(payment).hits(text)) == [
        ("bearer", b"abc.def"),
        ("card", b"4000123412341234"),
        ("card-in-groups", b"4000 1234 1234 1234"),
        ("environment", b"hunter2"),
        ("private-key", b"-----BEGIN RSA PRIVATE KEY-----\nMII=\n"),
    ]
    # AND of all other processes what the defaults say
    others = decide(policy, Facts(cause=Cause.SIGNAL, exe="/bin/x")).action.redact
    assert (others.environment, others.patterns) == (payment.environment, ())


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"unit": "shop@1.service"}, "shop"),
        ({"exe": POSTGRES}, "database"),
        ({"exe": "/bin/x"}, None),
    ],
)
def test_the_flight_recorder_example_watches_as_it_says(
    facts: dict[str, str], rule: str | None
) -> None:
    policy = load(EXAMPLES / "flight-recorder.yaml")
    # THEN the first rule that matches counts, whatever the process would die of
    for dies_of in ({"cause": Cause.SIGNAL, "signal": 11}, {"cause": Cause.EXIT}):
        watch = watch_rule(policy, Facts(**dies_of, **facts))  # type: ignore[arg-type]
        assert (watch.name if watch else None) == rule


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"unit": "postgresql@15.service"}, "database"),
        ({"exe": JAVA, "unit": "shop.service"}, "java"),
        ({"exe": "/bin/x"}, None),
    ],
)
def test_the_armed_example_arms_as_it_says(facts: dict[str, str], rule: str | None) -> None:
    found = arm_rule(load(EXAMPLES / "armed.yaml"), Facts(cause=Cause.SNAPSHOT, **facts))  # type: ignore[arg-type]
    assert (found.name if found else None) == rule


def test_the_crash_looping_example_waits_for_its_core() -> None:
    facts = Facts(cause=Cause.SIGNAL, unit="importer.service")
    action = decide(load(EXAMPLES / "services.yaml"), facts).action
    assert action.release is Release.AFTER_WRITE


def test_the_reference_documents_every_key() -> None:
    text = (ROOT / "docs/policy.md").read_text()
    assert [key for key in keys() if f"| `{key}` |" not in text] == []


def test_the_dumpers_of_the_document_are_good_policies() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/dumpers.md").read_text(), re.S)
    names = [[one.name for one in loads(block, "docs/dumpers.md").dumpers] for block in blocks]
    assert names == [["database"], ["chain"], ["container"]]
