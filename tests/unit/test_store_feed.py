"""Deaths as they come: each once, and only when all of it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.cli import main
from collector.errors import StoreError
from collector.model import Record
from collector.store.feed import Feed
from collector.store.store import Store
from tests.unit.store_samples import TIME, numbered


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def told(feed: Feed) -> list[int]:
    damage: list[StoreError] = []
    found = [record.start_ns for record in feed.new(damage.append)]
    assert damage == []
    return found


def test_each_is_told_once_when_it_is_closed(store: Store) -> None:
    # GIVEN a store with a death, and one that is still being captured
    store.put(numbered(1, reason="it died"))
    store.put(numbered(2))
    with Store(store.path, create=False, readonly=True) as reader:
        feed = Feed(reader)
        assert told(feed) == []
        # WHEN that one is closed, and two more die
        store.put(numbered(4, reason="it died"))
        store.put(numbered(3, reason="it died"))
        store.put(numbered(2, reason="it died"))
        # THEN they are told in the order of their deaths
        assert told(feed) == [2, 3, 4]
        # AND not again, though they are written anew, and old ones too
        store.put(numbered(3, reason="it died of something else"))
        store.put(numbered(1, reason="it died of something else"))
        assert told(feed) == []
        # AND an old death that is learnt of only now is new
        store.put(numbered(5, reason="it died", late=True, time=TIME.replace(year=2020)))
        assert told(feed) == [5]


def test_what_is_damaged_is_said_once(store: Store) -> None:
    feed = Feed(store)
    store.put(numbered(1, reason="it died"))
    (store.path / "crashes" / numbered(1).id / "record.json").write_text("{")
    damage: list[StoreError] = []
    assert feed.new(damage.append) == feed.new(damage.append) == []
    assert len(damage) == 1


def test_the_verb(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COREWARD_STORE", str(store.path))
    for number in (1, 2):
        store.put(numbered(number, reason="it died", comm="ev\nil"))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        """While the verb sleeps, two more die."""
        waits.append(seconds)
        for number in (2 * len(waits) + 1, 2 * len(waits) + 2):
            store.put(numbered(number, reason="it died", comm="other" if number % 2 else "victim"))

    monkeypatch.setattr("collector.cli.watch.time.sleep", wait)
    since = ("--since", "2026-11-21T03:00:02Z")
    assert main(["watch", "--json", "-n", "3", *since]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [msgspec.json.decode(line, type=Record) for line in lines]
    assert [record.start_ns for record in records] == [2, 3, 4]
    # AND without --since only what comes, one line each, and what the filter lets through
    assert main(["watch", "-n", "1", "--comm", "victim"]) == 0
    line = capsys.readouterr().out
    assert line.endswith(f" {numbered(6).id} pid 7 victim: it died\n")
    assert main(["watch", "-n", "0"]) == 2
