"""A record grows in memory and in the store, and is whole once, with its last part."""

from __future__ import annotations

import datetime
import threading
import typing
from pathlib import Path

import msgspec
import pytest

from collector.agent import facts
from collector.agent.crash import Crash
from collector.agent.facts import Kept
from collector.errors import StoreError
from collector.explain.types import Explanation
from collector.model import Capture, Cause, Outcome, ProcessKey, Record
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


def kept(core: str | None) -> Kept:
    return Kept(
        capture=Capture.FULL,
        outcome=Outcome.COMPLETE,
        core=core,
        core_size=1,
        core_memory=2,
        capture_s=0.5,
        attributes={},
        redacted={},
    )


@pytest.fixture
def crash() -> Crash:
    crash = Crash(ProcessKey(RECORD.pid, RECORD.start_ns))
    crash.open(RECORD, "core")
    return crash


def test_what_is_learnt_is_on_disk_when_it_is_kept(crash: Crash, store: Store) -> None:
    # WHEN facts come in, and what could not be had
    crash.learn(kept("core.zst"))
    crash.lose("cgroup", "it was gone")
    assert not store.has(RECORD.id)
    # AND the record is kept
    assert crash.keep(store) is True
    # THEN both are in the store, with what was lost before
    expected = msgspec.structs.replace(
        kept("core.zst").added_to(RECORD),
        lost={"exe": "its path could not be read", "cgroup": "it was gone"},
    )
    assert store.get(RECORD.id) == crash.record == expected
    assert (expected.core, expected.outcome) == ("core.zst", Outcome.COMPLETE)


def test_it_is_whole_with_its_last_part(crash: Crash) -> None:
    # GIVEN a record with two parts
    crash.begin("explanation")
    # WHEN one is done THEN it stays open
    crash.learn(kept("core.zst"))
    assert crash.end("core") is False
    # WHEN the other is done THEN it is whole, with all facts, and that is said once
    crash.explained(Explanation(abort_message="because"))
    assert crash.end("explanation") is True
    assert (crash.record.core, crash.record.abort_message) == ("core.zst", "because")
    assert crash.end("explanation") is False


def stages(kind: type[facts.Facts] = facts.Facts) -> list[type[facts.Facts]]:
    below = [stage for child in kind.__subclasses__() for stage in stages(child)]
    return [*kind.__subclasses__(), *below]


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.__name__)
def test_what_a_stage_knows_are_fields_of_the_record(stage: type[facts.Facts]) -> None:
    of_record = {field.name: field.type for field in msgspec.structs.fields(Record)}
    for field in msgspec.structs.fields(stage):
        whole = of_record[field.name]
        # the same type, or one of those that the record allows
        members = [] if typing.get_origin(whole) is list else typing.get_args(whole)
        assert field.type == whole or field.type in members, field.name


def test_parts_that_end_at_the_same_time_make_it_whole_once(crash: Crash) -> None:
    # GIVEN many parts, each ended by a thread of its own at the same moment
    names = [str(number) for number in range(20)]
    start = threading.Barrier(len(names))
    said: list[bool] = []
    for name in names:
        crash.begin(name)
    crash.end("core")

    def finish(name: str) -> None:
        start.wait()
        said.append(crash.end(name))

    threads = [threading.Thread(target=finish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [False] * 19 + [True]


def test_a_full_disk_does_not_stop_it(
    crash: Crash, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN a store that cannot be written
    def full(record: Record) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(store, "put", full)
    # WHEN facts come in THEN they are there to the end, and the trouble is logged
    crash.learn(kept(None))
    assert crash.keep(store) is False
    assert crash.end("core") is True
    assert crash.record == kept(None).added_to(RECORD)
    assert f"record {RECORD.id} cannot be stored: no space left" in caplog.text
