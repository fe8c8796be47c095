"""Signatures in the store: found, counted, and there again after the index was rebuilt."""

from __future__ import annotations

import contextlib
import datetime
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.errors import Ambiguous, NotFound
from collector.signature.facets import facets_of
from collector.store import schema
from collector.store.filter import Filter, microseconds, signature_of
from collector.store.schema import OLDEST, STEPS
from collector.store.signatures import SignatureRow
from collector.store.store import Store
from tests.unit.signature_samples import BUILD, ENTRY, EXE, death, own
from tests.unit.store_samples import TIME, numbered
from tests.unit.test_signature_compare import Death, tallies

SECOND = 1_000_000
OLD_COLUMNS = "id, time, cause, signal, comm, exe, unit, closed, inode, mtime, owner, held"
START = int(TIME.timestamp()) * SECOND + TIME.microsecond


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def fill(store: Store) -> tuple[str, str]:
    """Two deaths of one bug, a storm of another; the ids of both."""
    one = [*own("count_request"), *ENTRY]
    for record in (
        death(1, one),
        death(2, one),
        death(3, own("drop_twice"), count=40),
        numbered(4),  # of an older coreward
    ):
        store.put(record)
    ids = [store.get(f"{number:016x}").signature for number in (1, 3)]
    assert ids[0] is not None and ids[0].id is not None
    assert ids[1] is not None and ids[1].id is not None
    return ids[0].id, ids[1].id


def counted(store: Store) -> list[SignatureRow]:
    return sorted(store.signatures.counts(), key=lambda row: row.deaths)


def test_deaths_are_counted_and_found_by_their_signature(store: Store) -> None:
    first, second = fill(store)
    rows = counted(store)
    # THEN each bug has its number, its times and its build; a storm counts as what it stands for
    assert [(row.signature, row.exe, row.build, row.deaths) for row in rows] == [
        (first, EXE, BUILD, 2),
        (second, EXE, BUILD, 40),
    ]
    assert (rows[0].first, rows[0].last) == (START + SECOND, START + 2 * SECOND)
    assert store.signatures.texts() == {
        first: "SIGSEGV near-null | count_request",
        second: "SIGSEGV near-null | drop_twice",
    }
    # AND its records are found
    assert [record.start_ns for record in store.list(signature=first)] == [2, 1]
    assert store.list(signature="0" * 12) == []


def test_a_signature_is_named_by_its_first_digits(store: Store) -> None:
    first, second = fill(store)
    assert store.signatures.resolve(first[:6].upper()) == first
    with pytest.raises(NotFound, match="`coreward signatures` shows all"):
        store.signatures.resolve("x")
    with pytest.raises(NotFound):
        store.signatures.resolve("")
    common = next((d for d in "0123456789abcdef" if first[0] == second[0] == d), None)
    if common:
        with pytest.raises(Ambiguous):
            store.signatures.resolve(common)


def test_an_index_of_an_older_version_learns_the_signatures(store: Store) -> None:
    first, _ = fill(store)
    rows = counted(store)
    store.close()
    # GIVEN the index as it was before there were signatures, with a row for each record as it is
    index = store.path / "index.db"
    db = sqlite3.connect(index)
    old = db.execute(f"SELECT {OLD_COLUMNS} FROM deaths").fetchall()
    db.close()
    index.unlink()
    db = sqlite3.connect(index)
    step = next(number for number, text in enumerate(STEPS) if "deaths_by_signature" in text)
    db.executescript("".join(STEPS[:step]) + f"PRAGMA user_version = {OLDEST + step - 1};")
    db.executemany(f"INSERT INTO deaths ({OLD_COLUMNS}) VALUES ({'?, ' * 11}?)", old)
    db.commit()
    db.close()
    index.chmod(0o600)
    # WHEN the agent starts THEN it learns them from the records when there is time, and nothing is
    # set aside
    with Store(store.path, create=True) as agent:
        assert agent.refresh() == 4
        assert counted(agent) == rows
        assert [record.start_ns for record in agent.list(signature=first)] == [2, 1]
    assert not (store.path / "index.db.aside").exists()


def test_a_text_goes_with_the_last_death_that_has_it(store: Store) -> None:
    # GIVEN two signatures, of one of which all deaths are removed
    first, second = fill(store)
    store.remove(f"{3:016x}")
    store.close()
    # WHEN the agent starts again THEN the index does not grow with what is gone
    with Store(store.path, create=True) as agent:
        assert agent.signatures.texts() == {first: "SIGSEGV near-null | count_request"}
        assert [agent.signatures.has(id) for id in (first, second)] == [True, False]


def test_what_deaths_have_in_common_is_counted_as_they_come_and_go(tmp_path: Path) -> None:
    # GIVEN deaths of three bugs with few circumstances, so that some are of one episode, put, put
    # again with other facts, and removed in any order
    chance = random.Random(7)
    bugs = [[*own(name), *ENTRY] for name in ("count_request", "drop_twice", "serve")]
    with Store(tmp_path / "store", create=True) as store:
        for _ in range(20):
            with store.batch():
                for _ in range(10):
                    store.put(
                        death(
                            chance.randrange(60),
                            chance.choice(bugs),
                            unit=chance.choice((None, "web@1.service", "web@2.service")),
                            time=TIME + datetime.timedelta(minutes=20 * chance.randrange(9)),
                        )
                    )
            for number in chance.sample(range(60), 5):
                if store.has(f"{number:016x}"):
                    store.remove(f"{number:016x}")
        # THEN the numbers are those of the records that are left, counted one by one
        left = [r for r in store.each(Filter()) if r.signature is not None]
        for id in store.signatures.texts():
            expected = tallies(
                id,
                [
                    Death(
                        str(signature_of(record)),
                        msgspec.json.encode(facets_of(record)).decode(),
                        microseconds(record.time),
                    )
                    for record in left
                ],
            )
            assert sorted(store.signatures.tallies(id)) == expected
            assert store.signatures.others(id) == sum(signature_of(r) != id for r in left)
        assert 20 < len(left) < 60


def test_an_episode_is_found_without_a_look_at_others(store: Store) -> None:
    fill(store)
    # WHEN a trigger asks whether a death of the same hour has the same facets
    with contextlib.closing(sqlite3.connect(store.path / "index.db")) as db:
        asked = schema._SAME_EPISODE.format("one")
        query = f"EXPLAIN QUERY PLAN SELECT {asked} FROM deaths AS one"
        plan = " ".join(row[3] for row in db.execute(query))
    # THEN only those are looked at, however many others there are
    assert "deaths_by_hour (signature=? AND <expr>=? AND facets=?)" in plan
