"""The rules of deploy/prometheus: what raises each alert, and that whoever is woken finds help."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.metrics_document import full, sample_labels
from tests.promql import used
from tests.promtool import ROOT, RULES, promtool, rules

STORIES = ROOT / "tests" / "prometheus" / "alerts_test.yaml"
TARGET = {"job", "instance"}  # labels that Prometheus adds


def sections(document: Path) -> set[str]:
    """Anchors of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_the_rules_are_right() -> None:
    for name in ("recording.yaml", "alerts.yaml"):
        promtool("check", "rules", RULES / name)


def test_what_raises_each_alert() -> None:
    promtool("test", "rules", STORIES)


def test_each_alert_has_its_story() -> None:
    told = STORIES.read_text()
    for rule in rules("alerts.yaml"):
        assert re.search(rf'alertname(: |=~?)"?(\w+\|)?{rule["alert"]}\b', told), rule["alert"]


def test_each_alert_tells_whoever_is_woken_what_to_do() -> None:
    # GIVEN all alerts
    alerts = rules("alerts.yaml")
    names = [rule["alert"] for rule in alerts]
    assert len(set(names)) == len(names)
    for rule in alerts:
        # THEN each has the project's prefix, a severity, and says for how long it must hold
        assert rule["alert"].startswith("Coreward")
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in {"warning", "critical"}
        # AND sentences for people, with the host, and a section of the runbook
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert "$labels.instance" in notes["summary"]
        document, _, section = notes["runbook_url"].partition("#")
        assert section == rule["alert"].lower()
        assert section in sections(ROOT / document)
    # AND the runbook has no section of an alert that is gone
    found = {name for name in sections(ROOT / "docs" / "runbook.md") if name.startswith("coreward")}
    assert found == {name.lower() for name in names}


def test_rules_use_metrics_and_labels_that_exist() -> None:
    labels = sample_labels(full())
    recorded = {rule["record"] for rule in rules("recording.yaml")}
    for rule in rules("recording.yaml") + rules("alerts.yaml"):
        for metric in used(rule["expr"]):
            if metric.name in recorded or metric.name == "up":
                continue
            assert metric.family in labels, metric.name
            assert metric.labels <= labels[metric.family] | TARGET, metric


def test_names_of_recorded_series_say_level_metric_and_operation() -> None:
    for rule in rules("recording.yaml"):
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["record"])


def test_the_example_of_a_scrape_loads_these_rules() -> None:
    document = yaml.safe_load((RULES / "scrape.yaml").read_text())
    assert document["rule_files"] == ["recording.yaml", "alerts.yaml"]
    assert [scrape["job_name"] for scrape in document["scrape_configs"]] == ["coreward"]
    promtool("check", "config", RULES / "scrape.yaml")
