"""The mixed load of the benchmark: what grows, and which losses nothing explains."""

from __future__ import annotations

import random

import pytest

from bench.__main__ import arguments
from bench.soak import grown, is_unexplained, table
from bench.trend import growth, slope

TIMES = [10.0 * number for number in range(200)]


def looks(values: list[float]) -> list[dict[str, float]]:
    return [
        {"seconds": at, "rested": 1, "anonymous MiB": value, "descriptors": 50, "threads": 20}
        for at, value in zip(TIMES, values, strict=True)
    ]


def test_a_slope() -> None:
    assert slope([0, 1, 2, 3], [1, 3, 5, 7]) == pytest.approx(2)
    assert slope([1], [5]) == 0
    assert slope([], []) == 0
    assert growth([10, 20, 30], [1, 2, 3]) == pytest.approx(2)
    assert growth([], []) == 0


def test_spikes_bend_no_slope() -> None:
    # GIVEN what is flat but for a fifth of its points, which all come late
    values = [40.0] * 160 + [40.0, 90.0] * 20
    assert slope(TIMES, values) == 0


def test_noise_is_no_growth_but_a_leak_is() -> None:
    chance = random.Random(1)
    noise = [40 + chance.uniform(-2, 2) for _ in TIMES]
    leak = [value + at / 250 for value, at in zip(noise, TIMES, strict=True)]  # 14 MiB an hour
    verdicts = [grown(looks(values), judged=True)[0].verdict for values in (noise, leak)]
    assert verdicts == ["pass", "MISS"]


def test_only_the_second_half_counts() -> None:
    values = [30 + at / 100 if at < 1000 else 40.0 for at in TIMES]
    assert [figure.value for figure in grown(looks(values), judged=True)] == [0, 0, 0]


def test_only_the_agent_at_rest_counts() -> None:
    some = looks([40.0] * len(TIMES))
    for number, look in enumerate(some):
        if number % 5:
            look.update({"rested": 0, "anonymous MiB": 40.0 + number})
    assert [figure.value for figure in grown(some, judged=True)] == [0, 0, 0]
    assert grown(some[:1], judged=True) == []


def test_a_short_run_is_not_judged() -> None:
    figures = grown(looks([at / 10 for at in TIMES]), judged=False)
    assert [figure.verdict for figure in figures] == ["", "", ""]
    assert figures[0].detail.endswith("too short to be judged")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ('coreward_probe_events_dropped_total{program="signal_deliver"}', True),
        ('coreward_probe_events_dropped_total{program="overwritten"}', True),
        ('coreward_probe_events_dropped_total{program="mappings"}', False),
        ('coreward_deaths_beyond_share_total{kept="together"}', False),
        ('coreward_deaths_beyond_share_total{kept="no"}', True),
        ('coreward_errors_total{stage="record"}', True),
        ('coreward_errors_total{stage="store"}', False),
        ('coreward_errors_total{stage="write"}', False),
        ('coreward_handoffs_refused_total{why="late"}', False),
        ("coreward_captures_queue_full_total", False),
    ],
)
def test_which_losses_no_record_explains(name: str, expected: bool) -> None:
    assert is_unexplained(name) == expected


def test_the_table_has_some_lines() -> None:
    some = looks([40.0] * len(TIMES))
    some[0]['coreward_errors_total{stage="store"}'] = 1
    found = table(some)
    assert found.header == ["seconds", "rested", "anonymous MiB", "descriptors", "threads"]
    assert len(found.rows) == 20
    assert found.rows[1] == ["100", "1", "40", "50", "20"]


def test_it_can_be_short() -> None:
    assert arguments(["--case", "soak"]).minutes == 60
    assert arguments(["--case", "soak", "--minutes", "0.5"]).minutes == 0.5
