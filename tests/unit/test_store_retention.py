"""What goes from a store that is too full, in which order, and what its records say then."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.errors import StoreError
from collector.model import Capture, CrashSite, Outcome
from collector.store.filter import Filter
from collector.store.limits import Limits, Trimmed
from collector.store.retention import trim
from collector.store.store import Store
from tests.unit.store_samples import TIME, numbered

NOW = TIME + datetime.timedelta(days=1)
CORE = 65536
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store, store.batch():
        yield store


def put(store: Store, number: int, service: str, *, core: bool = True, **changes: object) -> str:
    """A death of that service; those with another `site` are of another kind."""
    site = CrashSite(build_id="ab", offset=int(str(changes.pop("site", 0))))
    record = numbered(number, unit=service, uid=0, reason="it died", site=site, **changes)
    if core:
        record = msgspec.structs.replace(
            record,
            core="core",
            core_size=CORE,
            capture=Capture.FULL,
            outcome=Outcome.COMPLETE,
        )
        fd = os.open(store.folder(record.id) / "core", os.O_WRONLY | os.O_CREAT, 0o600)
        os.posix_fallocate(fd, 0, CORE)
        os.close(fd)
    store.put(record)
    return record.id


def trimmed(store: Store, **limits: int | float) -> Trimmed:
    """Of a store that others use at the same time."""
    rows = store._own.rows
    store._finish(rows)
    rows.clear()
    with Store(store.path, create=False) as other:
        return trim(other, Limits(**limits), NOW)  # type: ignore[arg-type]


def kept(store: Store) -> dict[str, list[int]]:
    """Numbers of the records, by service; those that have a core are negative."""
    found: dict[str, list[int]] = {}
    for record in store.list():
        number = -record.start_ns if store.core_path(record) else record.start_ns
        found.setdefault(str(record.unit), []).insert(0, number)
    return found


def size_of(store: Store) -> int:
    return sum(one.held for one in store.victims.sizes(kept=True))


def test_who_loops_pushes_nobody_else_out(store: Store) -> None:
    # GIVEN a service with one old crash, and one that has crashed on and on since
    put(store, 1, "quiet.service")
    for number in range(2, 12):
        put(store, number, "loops.service")
    # WHEN a third has to go THEN the one that loops gives its cores, the oldest first, and keeps
    # its first and newest
    before = trimmed(store)
    assert before.is_empty
    done = trimmed(store, max_size=size_of(store) - 3 * CORE + 100)
    assert (done.cores, done.records, done.bytes) == ({"max_size": 3}, {}, 3 * CORE)
    assert kept(store) == {
        "quiet.service": [-1],
        "loops.service": [-2, 3, 4, 5, *range(-6, -12, -1)],
    }
    # AND the records say what became of their cores
    record = store.get(numbered(3).id)
    assert (record.core, record.capture, record.outcome) == (None, Capture.RECORD, Outcome.REMOVED)
    assert record.lost["core"] == (
        "removed: the store was beyond store.max_size, and loops.service held most"
    )
    assert record.reason == "it died"


def test_records_go_when_the_cores_of_a_service_are_gone(store: Store) -> None:
    put(store, 1, "quiet.service")
    for number in range(2, 12):
        put(store, number, "loops.service")
    quiet = CORE + 8192
    # WHEN each may have what the quiet one has
    done = trimmed(store, max_size=2 * quiet)
    # THEN the other one has less than that: of its records the first and the newest, without cores
    assert done.unmet == []
    assert size_of(store) <= 2 * quiet
    assert kept(store) == {"quiet.service": [-1], "loops.service": [2, 11]}


def test_no_more_goes_than_is_wanted_and_one_core(store: Store) -> None:
    # GIVEN many services with two cores each, of which half a core each has to go
    for number in range(20):
        put(store, number, f"{number % 10}.service", site=number)
    trimmed(store)
    done = trimmed(store, max_size=size_of(store) - 5 * CORE)
    # THEN five give one, and the others nothing
    assert done.cores == {"max_size": 5}


def test_the_first_and_the_newest_of_each_kind_stay_longer(store: Store) -> None:
    # GIVEN two kinds of crashes of one service
    for number in range(1, 9):
        put(store, number, "a.service", site=number % 2)
    trimmed(store)
    trimmed(store, max_size=size_of(store) - 4 * CORE)
    assert kept(store) == {"a.service": [-1, -2, 3, 4, 5, 6, -7, -8]}


def test_what_is_marked_goes_last(store: Store) -> None:
    for number in range(4):
        put(store, number, "a.service", site=number)
    trimmed(store)
    store.keep(numbered(0).id)
    assert [store.is_kept(numbered(n).id) for n in (0, 1)] == [True, False]
    assert [record.start_ns for record in store.each(Filter(kept=True))] == [0]
    # WHEN nearly all must go THEN it is still there, and its age is no reason either
    trimmed(store, max_records=1, max_core_age=3600.0, max_age=3600.0)
    assert kept(store) == {"a.service": [0]}
    assert store.core_path(store.get(numbered(0).id)) is not None
    # AND with a limit that nothing else can meet it goes as well
    done = trimmed(store, max_size=1)
    assert kept(store) == {}
    assert (done.cores, done.records) == ({"max_size": 1}, {"max_size": 1})
    # WHEN another is kept no more THEN it is as any other
    put(store, 9, "a.service")
    trimmed(store)
    store.keep(numbered(9).id)
    store.keep(numbered(9).id, False)
    assert not store.is_kept(numbered(9).id)
    trimmed(store, max_age=3600.0)
    assert kept(store) == {}


def test_a_mark_survives_a_new_record_and_a_new_index(store: Store) -> None:
    identity = put(store, 1, "a.service")
    trimmed(store)
    store.keep(identity)
    store.put(msgspec.structs.replace(store.get(identity), reason="known by now"))
    trimmed(store)
    assert [record.start_ns for record in store.each(Filter(kept=True))] == [1]
    store.repair(alone=True)
    assert [record.start_ns for record in store.each(Filter(kept=True))] == [1]


def test_ages(store: Store) -> None:
    for number, days in enumerate((40, 20, 1)):
        put(store, number, "a.service", time=NOW - datetime.timedelta(days=days))
    day = 86400.0
    done = trimmed(store, max_core_age=14 * day, max_age=30 * day)
    assert kept(store) == {"a.service": [1, -2]}
    assert (done.cores, done.records) == ({"max_core_age": 2}, {"max_age": 1})
    assert store.get(numbered(1).id).lost["core"] == "removed: older than store.max_core_age"


def test_number_of_records(store: Store) -> None:
    for number in range(6):
        put(store, number, "a.service", core=False)
    for number in range(6, 9):
        put(store, number, "b.service", core=False)
    trimmed(store, max_records=7)
    assert kept(store) == {"a.service": [0, 3, 4, 5], "b.service": [6, 7, 8]}


def test_limits_of_each_service(store: Store) -> None:
    for number in range(6):
        put(store, number, "ab"[number % 2] + ".service", core=number > 3)
    trimmed(store, service_max_records=2)
    assert kept(store) == {"a.service": [0, -4], "b.service": [1, -5]}
    trimmed(store, service_max_size=CORE)
    assert kept(store) == {"a.service": [0, 4], "b.service": [1, 5]}


def test_free_space(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        put(store, number, "a.service")
    monkeypatch.setattr(Store, "free_bytes", lambda self: 10 * CORE)
    assert trimmed(store, keep_free=10 * CORE).is_empty
    assert trimmed(store, keep_free=12 * CORE).cores == {"keep_free": 2}


def test_a_capture_in_progress_is_not_touched(store: Store) -> None:
    # GIVEN a record that is not closed: its writer will come back to it
    identity = put(store, 1, "a.service", site=1)
    store.put(msgspec.structs.replace(store.get(identity), reason=None))
    put(store, 2, "a.service", site=2)
    done = trimmed(store, max_records=1, max_size=1, max_age=3600.0, max_core_age=3600.0)
    assert kept(store) == {"a.service": [-1]}
    assert done.unmet == ["max_size"]


def test_a_damaged_record_does_not_stop_it(store: Store) -> None:
    for number in range(3):
        put(store, number, "a.service", site=number)
    trimmed(store)
    (store.path / "crashes" / numbered(0).id / "record.json").write_text("{")
    trimmed(store, max_size=1)
    assert list((store.path / "crashes").iterdir()) == []


def test_it_holds_a_page_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.store.victims._PAGE", 3)
    for number in range(20):
        put(store, number, "a.service", core=number % 2 == 0)
    done = trimmed(store, max_records=2)
    assert done.records == {"max_records": 18}
    assert kept(store) == {"a.service": [-18, 19]}


TRIM = """
import sys, pathlib, datetime
from collector.store import folders
from collector.store.limits import Limits
from collector.store.retention import trim
from collector.store.store import Store
step, calls = int(sys.argv[2]), 0
def counted(function):
    def call(*given, **named):
        global calls
        calls += 1
        if calls > step:
            import os
            os._exit(9)
        return function(*given, **named)
    return call
# killed before any one of the steps that the disk sees
for name in ("unlink", "rename", "rmdir", "fsync"):
    setattr(folders.os, name, counted(getattr(folders.os, name)))
with Store(pathlib.Path(sys.argv[1]), create=False) as store:
    trim(store, Limits(max_size=300_000), datetime.datetime.now(datetime.UTC))
"""


def test_killed_at_any_step_it_leaves_a_store_that_is_whole(store: Store) -> None:
    for number in range(12):
        put(store, number, "a.service", site=number % 2)
    trimmed(store)
    step, status = 0, 9
    while status == 9:
        command = [sys.executable, "-c", TRIM, str(store.path), str(step)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        # THEN each record that is visible can be read, and names a core only if there is one, or
        # says so when the next run has come to it
        damage: list[Exception] = []
        with Store(store.path, create=False, readonly=True) as reader:
            found = reader.list(on_damage=damage.append)
        assert damage == []
        assert len(found) >= 2
        step += 7
    assert status == 0
    # AND in the end it is within its limit, with nothing left behind
    with Store(store.path, create=True) as agent:
        agent.clean_partial()
        assert size_of(agent) <= 300_000
        assert all(r.core is None or agent.core_path(r) for r in agent.list())
        on_disk = {path.name for path in (store.path / "crashes").iterdir()}
        assert on_disk == {record.id for record in agent.list()}
    names = {path.name for path in (store.path / "crashes").rglob("*") if path.is_file()}
    assert names <= {"record.json", "core"}


def test_repair_says_what_it_found(store: Store) -> None:
    # GIVEN a store with a damaged record, a core without one, something unfinished, and an index
    # that has a row without a folder
    for number in range(4):
        put(store, number, "a.service")
    trimmed(store)
    crashes = store.path / "crashes"
    (crashes / numbered(1).id / "record.json").write_text("{")
    (crashes / numbered(2).id / "record.json").unlink()
    (crashes / numbered(3).id / ".tmp-core").touch()
    store._catalogue.announce([numbered(77)])
    # WHEN it is repaired
    with Store(store.path, create=False) as other:
        found = other.repair(alone=False)
    assert (found.records, found.rows_removed, found.replaced, found.unfinished) == (2, 2, False, 1)
    assert sorted(found.damaged) == [
        f"{crashes / numbered(1).id / 'record.json'}: damaged: Input data was truncated",
        f"{crashes / numbered(2).id}: has a core but no record.json",
    ]


def test_a_damaged_index_is_replaced_only_if_nobody_else_uses_it(store: Store) -> None:
    put(store, 1, "a.service")
    trimmed(store)
    store.close()
    (store.path / "index.db").write_bytes(b"this is not a database" * 100)
    with Store(store.path, create=False) as other:
        with pytest.raises(StoreError, match="damaged"):
            other.repair(alone=False)
        found = other.repair(alone=True)
        assert (found.records, found.replaced) == (1, True)
        assert [record.start_ns for record in other.list(unit="a*")] == [1]
