"""Records that are put at the same time, or in a batch, share the work of making them durable."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from collector.errors import StoreError
from collector.store import folders
from collector.store.filter import Filter
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT


def numbered(number: int, **differs: object) -> object:
    return msgspec.structs.replace(SEGFAULT, id=f"{number:016x}", **differs)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each flush of the file system."""
    seen: list[int] = []
    monkeypatch.setattr(folders, "syncfs", seen.append)
    return seen


def test_a_batch_is_flushed_once(tmp_path: Path, flushes: list[int]) -> None:
    with Store(tmp_path / "store", create=True) as store:
        # WHEN records are put together
        with store.batch():
            for number in range(5):
                store.put(numbered(number))  # type: ignore[arg-type]
            # THEN each is there at once
            assert store.has(f"{4:016x}")
            assert not flushes
        # AND one flush is for all of them
        assert len(flushes) == 1
        # AND the index has them
        assert store.count_matching(Filter()) == 5


def test_what_was_put_before_a_failure_is_kept(tmp_path: Path, flushes: list[int]) -> None:
    with Store(tmp_path / "store", create=True) as store:
        with pytest.raises(ZeroDivisionError), store.batch():
            store.put(numbered(1))  # type: ignore[arg-type]
            raise ZeroDivisionError
        assert len(flushes) == 1
        assert [record.id for record in store.list()] == [f"{1:016x}"]


def test_threads_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "store", create=True) as store:
        # GIVEN a thread that is writing, and others that wait for it
        writing, waiting = threading.Event(), threading.Event()
        write, synced = store._folders.write, list[bool]()

        def watched(record: object, *, sync: bool = True) -> object:
            synced.append(sync)
            writing.set()
            assert waiting.wait(60)
            return write(record, sync=sync)  # type: ignore[arg-type]

        monkeypatch.setattr(store._folders, "write", watched)
        first = threading.Thread(target=store.put, args=(numbered(0),))
        first.start()
        assert writing.wait(60)
        others = [threading.Thread(target=store.put, args=(numbered(n),)) for n in range(1, 9)]
        for thread in others:
            thread.start()
        while len(store._waiting) < len(others):
            threading.Event().wait(0.001)

        # WHEN it is done
        waiting.set()
        for thread in (first, *others):
            thread.join()

        # THEN they were written together, and all are there
        assert synced == [True, *[False] * 8]
        assert len(store.list()) == 9


def test_one_that_cannot_be_written_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "store", create=True) as store:
        write = store._folders.write

        def failing(record: object, *, sync: bool = True) -> object:
            if record.pid == 13:  # type: ignore[attr-defined]
                raise StoreError("no")
            return write(record, sync=sync)  # type: ignore[arg-type]

        monkeypatch.setattr(store._folders, "write", failing)
        with pytest.raises(StoreError, match="no"):
            store.put(numbered(1, pid=13))  # type: ignore[arg-type]
        store.put(numbered(2))  # type: ignore[arg-type]
        assert [record.id for record in store.list()] == [f"{2:016x}"]
