"""A linter of the dashboards: what Grafana would show as an empty panel is wrong here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics_document import full, sample_labels
from tests.promql import ranges, used
from tests.promtool import ROOT, promtool, rules

Panel = dict[str, Any]
FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
COLUMNS = 24  # of Grafana's grid
UNITS = {"short", "s", "bytes", "Bps", "percentunit", "dateTimeFromNow"}
STEP = "1m"  # at least: $__rate_interval is hardly more then, and bars do not count an event twice
KINDS = {"stat", "timeseries", "table", "heatmap"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ADDED = {"job", "instance", "le"}  # labels by Prometheus, and of buckets
BUILT_IN = {"__rate_interval", "__range"}


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def queries(file: Path) -> Iterator[str]:
    """Of panels and variables."""
    board = read(file)
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert match is not None
            yield match[1]


def test_there_are_four() -> None:
    assert [file.stem for file in FILES] == ["collector", "fleet", "service", "signature"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_can_be_imported_anywhere(file: Path) -> None:
    board = read(file)
    # GIVEN a dashboard THEN its address is fixed, and no database's number is in it
    assert board["uid"] == f"coreward-{file.stem}"
    assert "id" not in board and "__inputs" not in board
    assert board["title"].startswith("Coreward / ") and board["description"]
    assert board["tags"] == ["coreward"]
    # AND the data source and the hosts can be chosen
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[:3] == ["datasource", "job", "instance"]
    assert all(variable["label"] for variable in board["templating"]["list"])
    # AND a variable that is used is one that there is
    for query in queries(file):
        assert set(re.findall(r"\$\{?(\w+)", query)) <= {*names, *BUILT_IN}, query


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_panel_says_what_it_shows(file: Path) -> None:
    panels: list[Panel] = read(file)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in KINDS
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["interval"] == STEP
        assert panel["datasource"] == SOURCE
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
        assert all(target["datasource"] == SOURCE for target in panel["targets"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_panel_lies_on_another(file: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in read(file)["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_queries_use_what_exists(file: Path) -> None:
    labels = sample_labels(full())
    recorded = {rule["record"] for rule in rules("recording.yaml")}
    for query in queries(file):
        found = used(query)
        assert found, query
        for metric in found:
            if metric.name in recorded:
                by = set(metric.name.partition(":")[0].split("_"))
                assert metric.labels <= by | ADDED, metric
            elif metric.name != "up":
                assert metric.family in labels, metric.name
                assert metric.labels <= labels[metric.family] | ADDED, metric
        # AND the hosts that were chosen are meant
        assert all(
            {"job", "instance"} <= m.labels for m in found if m.name != "coreward_build_info"
        )
        # AND a range follows the width of the panel
        assert set(ranges(query)) <= {f"${name}" for name in BUILT_IN}, query


def test_queries_are_promql(tmp_path: Path) -> None:
    # GIVEN all queries, with values for their variables
    expressions = []
    for file in FILES:
        for query in queries(file):
            filled = query.replace("$__rate_interval", "5m").replace("$__range", "1h")
            expressions.append(re.sub(r"\$\w+", ".*", filled))
    found = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": found}]}))
    # THEN Prometheus takes each of them
    assert f"SUCCESS: {len(found)} rules found" in promtool("check", "rules", file)
