"""A record grows in the store, and is closed once, when its last part is done."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import msgspec
import pytest

from collector.agent.case import Case
from collector.errors import StoreError
from collector.model import Cause, Outcome, Record
from collector.store.store import Store

RECORD = Record(
    id="0123456789abcdef",
    time=datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC),
    pid=812,
    tid=812,
    cause=Cause.SIGNAL,
    comm="victim",
    start_ns=5,
    outcome=Outcome.PENDING,
    lost={"exe": "its path could not be read"},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def test_what_is_learnt_is_on_disk_at_once(store: Store) -> None:
    closed: list[Record] = []
    case = Case(RECORD, store, closed.append)
    # WHEN facts come in, and what could not be had
    case.learn(resident_bytes=4096, lost={"cgroup": "it was gone"})
    case.learn(outcome=Outcome.COMPLETE)
    # THEN both are in the store, with what was lost before
    expected = msgspec.structs.replace(
        RECORD,
        resident_bytes=4096,
        outcome=Outcome.COMPLETE,
        lost={"exe": "its path could not be read", "cgroup": "it was gone"},
    )
    assert store.get(RECORD.id) == case.record == expected
    assert closed == []


def test_it_is_closed_with_its_last_part(store: Store) -> None:
    # GIVEN a case with two parts
    closed: list[Record] = []
    case = Case(RECORD, store, closed.append)
    case.begin("core")
    case.begin("explanation")
    # WHEN one is done THEN it stays open
    case.learn(core="core.zst")
    case.end("core")
    assert closed == []
    # WHEN the other is done THEN it is closed with all facts
    case.learn(reason="because")
    case.end("explanation")
    assert closed == [msgspec.structs.replace(RECORD, core="core.zst", reason="because")]


def test_parts_that_end_at_the_same_time_close_it_once(store: Store) -> None:
    # GIVEN many parts, each ended by a thread of its own at the same moment
    closed: list[Record] = []
    case = Case(RECORD, store, closed.append)
    names = [str(number) for number in range(20)]
    start = threading.Barrier(len(names))
    for name in names:
        case.begin(name)

    def finish(name: str) -> None:
        start.wait()
        case.end(name)

    threads = [threading.Thread(target=finish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closed == [RECORD]


def test_a_full_disk_does_not_stop_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a store that can not be written
    def full(record: Record) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(store, "put", full)
    closed: list[Record] = []
    case = Case(RECORD, store, closed.append)
    case.begin("core")
    # WHEN facts come in THEN they are kept, and the trouble is logged
    case.learn(outcome=Outcome.FAILED)
    case.end("core")
    assert closed == [msgspec.structs.replace(RECORD, outcome=Outcome.FAILED)]
    assert f"record {RECORD.id} can not be stored: no space left" in caplog.text
