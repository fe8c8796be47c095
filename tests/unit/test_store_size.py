"""What a store holds, as the metrics tell it."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import pytest

from collector.store import size
from collector.store.size import Held, StoreSize
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT


def test_what_is_held_is_looked_at_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    # GIVEN a store with one core of three records
    with Store(tmp_path / "store", create=True) as store:
        one = StoreSize(store.path)
        assert one.held() == Held(0, 0, 0)
        for number in range(3):
            core = {"core": "core", "core_size": 4096} if number == 0 else {"core": None}
            store.put(msgspec.structs.replace(SEGFAULT, id=f"{number:016x}", **core))
        # THEN that is known a minute later, for it costs something
        assert one.held() == Held(0, 0, 0)
        now[0] += size.LOOK_S
        assert one.held() == Held(3, 1, 4096)


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    # GIVEN no store at all THEN no scrape fails by it
    one = StoreSize(tmp_path / "none")
    assert one.held() == Held(0, 0, 0)
    assert math.isnan(one.free()) and math.isnan(one.whole())


def test_the_room_where_it_is(tmp_path: Path) -> None:
    assert 0 < StoreSize(tmp_path).free() <= StoreSize(tmp_path).whole()
