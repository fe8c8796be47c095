"""A year of deaths in one store, scaled down: who loops pushes nobody out, nothing is orphaned."""

from __future__ import annotations

from pathlib import Path

from bench.year import Year, run


def test_a_year(tmp_path: Path) -> None:
    # GIVEN deaths of 20 services, of which three loop, in a store that holds a fraction of them
    year = Year(
        deaths=1500,
        services=20,
        loops=3,
        size=8 << 20,
        records=400,
        kills=3,
        core_sizes=(16 << 10, 64 << 10),
    )
    # WHEN they are put and trimmed by an agent that is killed three times
    found = run(tmp_path / "store", year)
    # THEN the store is whole and within its limits
    assert found.kills == 3
    assert (found.damaged, found.orphans, found.leftovers) == ([], 0, 0)
    assert found.bytes <= year.size
    assert sum(one.records for one in found.left) <= year.records
    # AND each service has its newest death, and its first one
    assert [one.service for one in found.left if not one.has_newest] == []
    assert [one.service for one in found.left if not one.has_first] == []
    # AND those that do not loop have all of theirs, cores included where they hold least
    loops, quiet = found.left[: year.loops], found.left[year.loops :]
    assert all(one.records == one.deaths for one in quiet)
    assert all(one.records < one.deaths for one in loops)
