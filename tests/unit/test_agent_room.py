"""What cores in the making take on the store's disk, and the names of owners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from collector.agent.owner import name_of, user_of
from collector.agent.room import Room
from collector.errors import StoreError
from collector.linux.memory import LevelKey
from collector.model import Cause
from collector.policy.types import Facts
from collector.store.store import Store
from tests.unit.store_samples import numbered
from tests.unit.test_pods_files import NAMED

FREE = 1000
CGROUP = 7 << 32  # of native/owner.c: the cgroup 7, root in it


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Store, "free_bytes", lambda _: FREE)
    return Store(tmp_path / "store", create=True)


def test_what_is_being_written_counts_as_its_owners(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def make_room(
        owner: str, size: int, wanted: int, writing: Mapping[str, int], *, own: bool
    ) -> int:
        asked.append((owner, size, wanted, dict(writing), own))
        return 1

    monkeypatch.setattr(store, "make_room", make_room)
    room, first = Room(store), numbered(1, owner="a")
    # GIVEN room for what is wanted THEN nothing is asked of others
    assert room.make(first, 5, FREE, FREE)
    assert asked == []
    # WHEN there is none THEN it counts what others have in hand by now
    assert room.make(numbered(2, owner="a"), 20, FREE + 3, FREE)
    assert room.make(numbered(3, owner="b"), 1, FREE + 3, FREE)
    room.done(first)
    assert room.make(numbered(3, owner="b"), 2, FREE + 3, FREE)
    # AND where something else has filled the disk, its owner's cores alone may go
    assert room.make(numbered(3, owner="b"), 2, FREE + 3, FREE + 1)
    assert asked == [
        ("a", 20, 3, {"a": 25}, False),
        ("b", 1, 3, {"a": 25, "b": 1}, False),
        ("b", 2, 3, {"a": 20, "b": 2}, False),
        ("b", 2, 3, {"a": 20, "b": 2}, True),
    ]


def test_a_store_that_cannot_be_written_makes_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, own: bool) -> int:
        raise StoreError("broken")

    monkeypatch.setattr(store, "make_room", fail)
    assert not Room(store).make(numbered(1), 0, FREE + 1, FREE)


FACTS = Facts(cause=Cause.SIGNAL, uid=100_123, unit="docker-0.scope", cgroup="/s/docker-0.scope")


@pytest.mark.parametrize(
    ("owner", "facts", "name", "user"),
    [
        (1000, FACTS, "uid 1000", 1000),  # with subordinate ids
        (CGROUP, FACTS, "docker-0.scope", None),
        (CGROUP | 5, FACTS, "docker-0.scope", None),
        (CGROUP, replace(FACTS, unit=None), "/s/docker-0.scope", None),
        (CGROUP, replace(FACTS, of_pod=NAMED), f"pod {NAMED.uid}", None),
        (1000, replace(FACTS, of_pod=NAMED), "uid 1000", 1000),
        (0, replace(FACTS, uid=0, unit=None, cgroup=None), "uid 0", None),
        (None, FACTS, "uid 100123", None),
        (None, replace(FACTS, uid=None), None, None),
    ],
)
def test_names(owner: int | None, facts: Facts, name: str | None, user: int | None) -> None:
    level = None if owner is None else LevelKey(0, owner)
    assert (name_of(level, facts), user_of(level)) == (name, user)
