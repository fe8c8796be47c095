"""How index and folders agree: what the index alone is believed, and how it comes from version to
version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.errors import StoreError
from collector.model import Cause, Record
from collector.store import catalogue, folders
from collector.store.filter import Filter
from collector.store.schema import OLDEST, STEPS, VERSION
from collector.store.store import Store
from tests.unit.store_samples import numbered


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


@pytest.fixture
def many(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of so many records that their folders are not looked at."""
    with store.batch():
        for number in range(20):
            store.put(numbered(number, reason="killed", unit=f"{'ab'[number % 2]}.service"))
    monkeypatch.setattr(catalogue, "MANY", 10)
    return store


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each look at all folders."""
    seen: list[int] = []
    names = folders._names
    monkeypatch.setattr(folders, "_names", lambda fd: seen.append(fd) or names(fd))  # type: ignore[func-returns-value]
    return seen


def numbers(records: list[Record]) -> list[int]:
    return [record.start_ns for record in records]


def test_many_records_are_found_without_a_look_at_all_folders(
    many: Store, looks: list[int]
) -> None:
    with Store(many.path, create=False, readonly=True) as reader:
        assert numbers(reader.list(limit=3)) == [19, 18, 17]
        assert numbers(reader.list(unit="b*", limit=2)) == [19, 17]
        assert reader.count_matching(Filter(unit="a.service")) == 10
        assert reader.resolve(f"{7:016x}") == f"{7:016x}"
        assert reader.beside([f"{7:016x}"]) == [f"{6:016x}", f"{8:016x}"]
    assert looks == []


def test_pages_follow_each_other_without_a_gap(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN deaths of one moment, on both sides of the end of a page
    monkeypatch.setattr("collector.store.index._PAGE", 3)
    for number in range(30, 38):
        many.put(msgspec.structs.replace(numbered(number), time=numbered(30).time))
    assert numbers(many.list()) == [*range(37, 29, -1), *range(19, -1, -1)]


def test_a_record_is_in_the_index_before_it_is_on_disk(
    many: Store, monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    # GIVEN a writer that is killed right after it has written a record
    class Killed(BaseException):
        pass

    def killed(rows: object) -> None:
        raise Killed

    monkeypatch.setattr(many._catalogue, "put", killed)
    with pytest.raises(Killed):
        many.put(numbered(99))
    with pytest.raises(Killed), many.batch():
        many.put(numbered(100))
    # THEN a reader that asks the index alone has both
    with Store(many.path, create=False, readonly=True) as reader:
        assert numbers(reader.list(limit=3)) == [100, 99, 19]
    assert looks == []


def test_a_row_without_a_record_is_ignored_and_cleared_away(many: Store) -> None:
    # GIVEN a writer that was killed just before it wrote its record
    many._catalogue.announce([numbered(99)])
    assert numbers(many.list(limit=1)) == [19]
    assert many.count_matching(Filter()) == 21
    # THEN the next agent clears it away
    with Store(many.path, create=True) as agent:
        assert agent.count_matching(Filter()) == 20


def test_after_another_boot_the_folders_are_looked_at(
    many: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a row that was not on disk yet when the host went down
    with sqlite3.connect(many.path / "index.db") as db:
        db.execute("DELETE FROM deaths WHERE id = ?", (f"{5:016x}",))
    db.close()
    assert 5 not in numbers(many.list())
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(catalogue, "_BOOT_ID", tmp_path / "boot_id")
    # THEN a reader finds its record all the same
    assert numbers(many.list()) == [*range(19, -1, -1)]
    # AND the next agent puts it in
    with Store(many.path, create=True) as agent:
        assert agent.count_matching(Filter()) == 20


def made_by_older(store: Store, version: int) -> Path:
    """The index that an older version had of two records; the store is closed."""
    store.put(numbered(1, unit="a.service", reason="killed"))
    store.put(numbered(2, cause=Cause.OOM))
    store.close()
    file = store.path / "index.db"
    file.unlink()
    db = sqlite3.connect(file)
    db.executescript("PRAGMA journal_mode = WAL;" + "".join(STEPS[: version - OLDEST + 1]))
    columns = [name for _, name, *_ in db.execute("PRAGMA table_info(deaths)")]
    for number in (1, 2):
        row = {"id": f"{number:016x}", "time": number, "cause": "signal", "comm": "victim"}
        row |= {"closed": 0, "inode": 1, "mtime": 1, "owner": "uid 0", "held": 0}
        marks = ", ".join("?" * len(row))
        assert set(row) <= set(columns)
        db.execute(f"INSERT INTO deaths ({', '.join(row)}) VALUES ({marks})", [*row.values()])
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    return file


@pytest.mark.parametrize("version", range(OLDEST, VERSION))
def test_a_reader_takes_an_older_index_as_it_is(store: Store, version: int) -> None:
    # GIVEN records, and the index that an older version had of them
    file = made_by_older(store, version)
    before = file.read_bytes()
    # WHEN somebody reads THEN he has all, without a complaint, and the file is as it was
    damage: list[StoreError] = []
    with Store(store.path, create=False, readonly=True) as reader:
        found = [*reader.each(Filter(), damage.append)]
        assert [record.start_ns for record in found] == [2, 1]
        assert reader._catalogue.query("SELECT count(*) FROM deaths", {}) == [(2,)]
    assert (damage, file.read_bytes()) == ([], before)


@pytest.mark.parametrize("version", range(OLDEST, VERSION))
def test_an_older_index_is_migrated(store: Store, version: int) -> None:
    # GIVEN records, and the index that an older version had of them
    file = made_by_older(store, version)
    inode = file.stat().st_ino

    # WHEN the agent starts THEN it is the same file, of this version, and its rows are right
    with Store(store.path, create=True) as agent:
        assert numbers(agent.list(unit="a.*")) == [1]
        assert numbers(agent.list(cause=Cause.OOM)) == [2]
        assert numbers(agent.list(closed=False)) == [2]
    assert file.stat().st_ino == inode
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()
    assert not (store.path / "index.db.aside").exists()


def test_an_agent_does_not_wait_for_new_columns(store: Store) -> None:
    # GIVEN a row that is right, but for what an older version did not have
    store.put(numbered(1, unit="a.service", reason="killed"))
    store.put(numbered(2, unit="a.service"))
    with sqlite3.connect(store.path / "index.db") as db:
        db.execute("UPDATE deaths SET service = '', inode = -1")
        # AND one whose record was written again by a writer that was killed then
        db.execute("UPDATE deaths SET mtime = 1 WHERE id = ?", (f"{2:016x}",))
    db.close()

    def services() -> list[str]:
        found = store._catalogue.query("SELECT service FROM deaths ORDER BY id", {})
        return [service for (service,) in found]

    # WHEN an agent starts THEN it reads that one alone
    with Store(store.path, create=True) as agent:
        assert services() == ["", "a.service"]
        # AND the other one when there is time
        assert agent.refresh() == 1
        assert services() == ["a.service", "a.service"]
        assert agent.refresh() == 0


def test_many_are_removed_with_few_flushes(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN ids of which one is not there
    ids = [f"{number:016x}" for number in (*range(20), 77)]
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    # WHEN they are removed THEN all that there are go, and one flush did for them
    assert sorted(id for id, freed in many.remove_all(ids) if freed > 0) == ids[:20]
    assert len(flushed) == 1
    assert list((many.path / "crashes").iterdir()) == []
    assert many.count_matching(Filter()) == 0


def test_a_remover_that_fails_between_its_steps_leaves_nothing_half_visible(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a remover that ends when the first file is to go
    def failing(name: str, directory: int) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_delete", failing)
        with pytest.raises(StoreError, match="not removed: Input/output error"):
            list(many.remove_all([f"{1:016x}", f"{2:016x}"]))
    # THEN neither is visible, and what is left of them goes with the next clean-up
    assert numbers(many.list())[-2:] == [3, 0]
    assert many.clean_partial() == 2
    assert many.count() == 18
