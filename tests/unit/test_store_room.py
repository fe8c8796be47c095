"""Whose cores make room for a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.model import Capture, Outcome, Record
from collector.store.room import cores_to_remove
from collector.store.store import Store
from collector.store.victims import Victim
from collector.store.whose import owner_of
from tests.unit.store_samples import numbered


class HeldCore(NamedTuple):
    owner: str
    id: str
    size: int


def cores(*held: tuple[str, int]) -> list[HeldCore]:
    """Cores by owner and size, the oldest first; their ids are 0, 1, 2, …"""
    return [HeldCore(owner, str(n), size) for n, (owner, size) in enumerate(held)]


def removed(held: list[HeldCore], owner: str, size: int, wanted: int, **writing: int) -> list[str]:
    writing[owner] = writing.get(owner, 0) + size
    old: Counter[str] = Counter()
    for core in held:
        old[core.owner] += core.size

    def cores_of(owner: str) -> Iterator[Victim]:
        return (Victim(core.id, core.size) for core in held if core.owner == owner)

    return cores_to_remove(old, cores_of, writing, owner, size, wanted)


def test_whoever_holds_most_gives_his_oldest() -> None:
    held = cores(("b", 1), ("a", 4), ("a", 5), ("b", 2), ("a", 6))
    assert removed(held, "c", 1, 3) == ["1"]
    assert removed(held, "c", 1, 8) == ["1", "2"]


def test_it_goes_on_with_who_holds_most_then() -> None:
    # a: 9 and then 4, b: 7 and then 3
    held = cores(("a", 5), ("a", 4), ("b", 4), ("b", 3))
    assert removed(held, "c", 0, 13) == ["0", "2", "1"]


def test_nobody_gives_for_who_holds_more() -> None:
    # GIVEN a, who has most with his new core, WHEN he needs room THEN it is his own that goes
    held = cores(("b", 5), ("a", 4), ("a", 4), ("b", 3))
    assert removed(held, "a", 1, 4) == ["1"]
    # AND never more of it than the new one is worth
    assert removed(held, "a", 4, 8) == []
    # WHEN his cores in the making are what he holds THEN it is the same
    assert removed(cores(("b", 5)), "a", 1, 1, a=5) == []
    assert removed(cores(("b", 5)), "a", 1, 1, a=3) == ["0"]


def test_two_owners_end_with_a_half_each() -> None:
    # GIVEN a disk full of a's cores WHEN b has one after the other of the same size
    held = cores(*[("a", 10)] * 8)
    for number in range(20):
        for id in removed(held, "b", 5, 5):
            held = [core for core in held if core.id != id]
        held.append(HeldCore("b", f"b{number}", 10))
    # THEN a keeps half of it, with his last ones
    assert [core.id for core in held if core.owner == "a"] == ["4", "5", "6", "7"]
    assert [core.id for core in held if core.owner == "b"] == ["b16", "b17", "b18", "b19"]


def test_one_huge_core_does_not_take_the_place_of_all() -> None:
    held = cores(*[("a", 10)] * 4)
    assert removed(held, "a", 5, 10) == ["0"]
    assert removed(held, "a", 25, 10) == ["0"]
    assert removed(held, "a", 40, 10) == []


def test_nothing_goes_where_it_would_not_do() -> None:
    # a disk that something else has filled
    assert removed(cores(("a", 4), ("a", 5)), "b", 0, 10) == []
    assert removed([], "b", 0, 1) == []


@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({"uid": 1000}, "uid 1000"),
        ({"uid": 0}, "uid 0"),
        ({}, "uid unknown"),
        ({"uid": 101000, "owner": "uid 1000"}, "uid 1000"),
        ({"uid": 0, "owner": "db.service"}, "db.service"),
        ({"uid": 0, "unit": "db.service"}, "db.service"),
        ({"uid": 0, "cgroup": "/docker/0123"}, "/docker/0123"),
        ({"uid": 1000, "unit": "made-up.service"}, "uid 1000"),
    ],
)
def test_an_owner_is_the_records_or_its_user(changes: dict[str, object], owner: str) -> None:
    assert owner_of(numbered(1, **changes)) == owner


# ---- in a store


def put(store: Store, number: int, owner: str, size: int, **changes: object) -> Record:
    record = numbered(
        number,
        owner=owner,
        core="core",
        core_size=size,
        capture=Capture.FULL,
        outcome=Outcome.COMPLETE,
        **{"reason": "it died", **changes},
    )
    (store.folder(record.id) / "core").write_bytes(bytes(size))
    store.put(record)
    return record


def test_the_record_stays_and_says_so(tmp_path: Path) -> None:
    # GIVEN a store with cores of two owners
    with Store(tmp_path / "store", create=True) as store:
        old, new = put(store, 1, "uid 1", 8192), put(store, 2, "uid 1", 8192)
        other = put(store, 3, "uid 2", 4096)
        # WHEN a third one needs room
        assert store.make_room("uid 3", 0, 5000, {"uid 3": 0}) == 8192
        # THEN the oldest core of who has most is gone, and its record says why
        found = store.get(old.id)
        assert store.core_path(found) is None
        assert (found.core, found.capture, found.outcome) == (None, Capture.RECORD, Outcome.REMOVED)
        assert found.lost["core"] == "removed to make room for a core of uid 3"
        assert found.reason == "it died"
        assert list((store.path / "crashes" / old.id).iterdir()) == [
            store.path / "crashes" / old.id / "record.json"
        ]
        # AND the others are as they were
        assert [store.get(r.id) for r in (new, other)] == [new, other]
        assert store.core_path(new) and store.core_path(other)
        # WHEN there is not enough for what is wanted THEN nothing goes
        assert store.make_room("uid 3", 0, 1 << 20, {"uid 3": 0}) == 0
        assert store.core_path(new) and store.core_path(other)


def test_what_is_not_closed_or_gone_gives_nothing(tmp_path: Path) -> None:
    # GIVEN a core whose record is still open: who has it would write it again with its core
    with Store(tmp_path / "store", create=True) as store:
        put(store, 1, "uid 1", 8192, reason=None)
        assert store.make_room("uid 3", 0, 1, {}) == 0
        # AND one that another process has removed without the index
        gone = put(store, 2, "uid 1", 8192)
        store._folders.remove([gone.id], lambda _: None)
        assert store.make_room("uid 3", 0, 1, {}) == 0
