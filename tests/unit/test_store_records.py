"""What the store promises: records go in whole, come out equal, and are found."""

from __future__ import annotations

import datetime
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.errors import Ambiguous, NotFound, StoreError
from collector.model import Cause, ProcessKey
from collector.store.encoding import encode
from collector.store.ids import record_id
from collector.store.store import Store
from tests.unit.store_samples import KILLED, SEGFAULT, TIME, numbered


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def modes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root.parent)): stat.filemode(path.stat().st_mode)
        for path in (root, *root.rglob("*"))
    }


def test_id_is_the_same_for_the_same_death_only() -> None:
    boot = "0fdb6ab1-6f5c-4a9f-8f5c-2a4f3c1f0a11"
    ids = [
        record_id(boot, ProcessKey(812, 5)),
        record_id(boot + "\n", ProcessKey(812, 5)),
        record_id(boot, ProcessKey(81, 25)),
        record_id("another", ProcessKey(812, 5)),
    ]
    assert [len(id) for id in ids] == [16] * 4
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_record_comes_back_equal_also_to_another_reader(store: Store) -> None:
    store.put(SEGFAULT)

    with Store(store.path, create=False, readonly=True) as reader:
        assert reader.get(SEGFAULT.id) == SEGFAULT
        assert reader.get("latest") == SEGFAULT
        assert reader.list() == [SEGFAULT]
        assert reader.count() == 1


def test_put_again_replaces(store: Store) -> None:
    changed = msgspec.structs.replace(SEGFAULT, cause=Cause.OOM, comm="other")

    store.put(SEGFAULT)
    store.put(changed)

    assert store.list() == [changed]
    assert store.list(comm="victim") == []
    assert names(store.path / "crashes" / SEGFAULT.id) == ["record.json"]


def test_bytes_that_are_not_utf8_are_spelled_out(store: Store) -> None:
    store.put(KILLED)

    assert store.get("latest") == msgspec.structs.replace(KILLED, exe="/tmp/\u202ex\\xff")


def test_record_json_is_safe_to_print() -> None:
    # GIVEN names with ESC, newline, C1 and a bidi override
    data = encode(msgspec.structs.replace(KILLED, exe="/tmp/\u202ex"))

    # THEN the file has none of them, and says the same
    assert not set(data.decode()) & set("\x1b\x9b\u202e\x7f")
    assert b'"comm": "ev\\nil\\u001b[31m"' in data
    assert b'"exe": "/tmp/\\u202ex"' in data


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_owner_may_read(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        with Store(tmp_path / "store", create=True) as store:
            store.put(SEGFAULT)
            store.folder(KILLED.id)
            found = modes(store.path)
    finally:
        os.umask(previous)

    assert found == {
        "store": "drwx------",
        "store/crashes": "drwx------",
        "store/crashes/0123456789abcdef": "drwx------",
        "store/crashes/0123456789abcdef/record.json": "-rw-------",
        "store/crashes/fedcba9876543210": "drwx------",
        "store/index.db": "-rw-------",
        "store/index.db-shm": "-rw-------",
        "store/index.db-wal": "-rw-------",
    }


def test_store_that_stands_open_is_closed_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    # GIVEN a store whose folder was made readable
    with Store(tmp_path / "store", create=True):
        (tmp_path / "store").chmod(0o755)
    # AND a folder that is somebody's
    (tmp_path / "home").mkdir(0o755)
    (tmp_path / "home" / "letter").touch()

    # WHEN both are opened
    with Store(tmp_path / "store", create=True):
        pass
    with pytest.raises(StoreError, match="is open to others and is not a store"):
        Store(tmp_path / "home", create=True)

    # THEN
    assert stat.filemode((tmp_path / "store").stat().st_mode) == "drwx------"
    assert modes(tmp_path / "home") == {"home": "drwxr-xr-x", "home/letter": "-rw-r--r--"}


def test_newest_first_and_filters(store: Store) -> None:
    records = [
        numbered(0, signal=11, exe="/usr/bin/a", unit="a.service"),
        numbered(1, signal=6, exe="/usr/bin/b", comm="worker"),
        numbered(2, signal=9, cause=Cause.KILLED, unit="b.service"),
        numbered(3, cause=Cause.EXIT),
    ]
    for number in (2, 0, 3, 1):
        store.put(records[number])
    second = datetime.timedelta(seconds=1)

    def numbers(**filters: object) -> list[int]:
        return [record.start_ns for record in store.list(**filters)]  # type: ignore[arg-type]

    assert {
        "all": numbers(),
        "limit": numbers(limit=2),
        "none": numbers(limit=0),
        "since": numbers(since=TIME + second),
        "until": numbers(until=TIME + second),
        "cause": numbers(cause=Cause.KILLED),
        "signal": numbers(signal=6),
        "comm": numbers(comm="work*"),
        "exe": numbers(exe="/usr/*/[ab]"),
        "unit": numbers(unit="?.service"),
        "both": numbers(unit="*", signal=11),
    } == {
        "all": [3, 2, 1, 0],
        "limit": [3, 2],
        "none": [],
        "since": [3, 2, 1],
        "until": [0],
        "cause": [2],
        "signal": [1],
        "comm": [1],
        "exe": [1, 0],
        "unit": [2, 0],
        "both": [0],
    }


def test_prefixes(store: Store) -> None:
    with pytest.raises(NotFound, match="no deaths on record"):
        store.get("latest")
    ids = ["aaaa000000000000", "aaab000000000000", "b000000000000000"]
    for number, id in enumerate(ids):
        store.put(numbered(number, id=id))

    assert [store.get(name).id for name in ("b", "AAAA", ids[1], "latest")] == [
        ids[2],
        ids[0],
        ids[1],
        ids[2],
    ]
    with pytest.raises(Ambiguous) as two:
        store.get("aa")
    with pytest.raises(NotFound) as none:
        store.get("c")
    assert str(two.value) == ("2 records begin with 'aa': aaaa000000000000, aaab000000000000")
    assert str(none.value) == "no record begins with 'c'; `coreward list` shows all"


@pytest.mark.parametrize("name", ["", "..", "../x", "xyz", "0" * 17, "0\n", "٣"])
def test_what_is_no_id_is_no_path(store: Store, name: str) -> None:
    store.put(SEGFAULT)

    with pytest.raises(NotFound, match="is not an ID"):
        store.get(name)
    for call in (store.folder, store.remove):
        with pytest.raises(StoreError, match="is not a record's id"):
            call(name)
    with pytest.raises(StoreError, match="is not a record's id"):
        store.put(msgspec.structs.replace(SEGFAULT, id=name))


def test_records_that_nobody_closed(store: Store) -> None:
    # GIVEN more records than anyone looks through, the oldest one left open by a killed agent
    records = [numbered(number, reason="killed") for number in range(1200)]
    left_open = numbered(0)
    with store.batch():
        for record in (left_open, *records[1:]):
            store.put(record)
    # THEN it is found
    assert store.list(closed=False) == [left_open]
    # AND not once it is closed
    store.put(records[0])
    assert store.list(closed=False) == []
    assert len(store.list(closed=True)) == 1200


def test_a_record_that_the_index_misses_is_found_open_too(store: Store) -> None:
    left_open = numbered(1)
    store.put(left_open)
    store.put(numbered(2, reason="killed"))
    with sqlite3.connect(store.path / "index.db") as db:
        db.execute("DELETE FROM deaths")
    db.close()
    assert store.list(closed=False) == [left_open]


def test_remove_takes_the_core_along(store: Store) -> None:
    store.put(SEGFAULT)
    core = store.folder(SEGFAULT.id) / "core"
    core.write_bytes(bytes(10000))
    assert store.core_path(SEGFAULT) == core

    freed = store.remove(SEGFAULT.id)

    assert freed >= 10000
    assert names(store.path / "crashes") == []
    assert (store.list(), store.count(), store.core_path(SEGFAULT)) == ([], 0, None)
    with pytest.raises(NotFound):
        store.remove(SEGFAULT.id)


def test_readonly_writes_nothing(store: Store) -> None:
    store.put(SEGFAULT)
    with Store(store.path, create=False, readonly=True) as reader:
        for call in (
            lambda: reader.put(SEGFAULT),
            lambda: reader.remove(SEGFAULT.id),
            lambda: reader.folder(SEGFAULT.id),
            reader.clean_partial,
        ):
            with pytest.raises(StoreError, match="is open for reading only"):
                call()


def test_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store there"):
        Store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_time_without_zone_is_a_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match="its time has no zone"):
        store.put(msgspec.structs.replace(SEGFAULT, time=TIME.replace(tzinfo=None)))


def test_agent_imports_nothing_heavy() -> None:
    """The agent's memory is bounded: the store brings neither OpenSSL nor a tool's library."""
    program = (
        "import sys, collector.store.store; heavy = {'rich', 'elftools', 'zstandard', 'drgn', "
        "'bcc', 'hashlib', 'subprocess', 'tempfile'}; print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_no_room_for_new_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a store with a record, and a disk that fills up
    store.put(SEGFAULT)
    store.min_free = 1 << 20
    monkeypatch.setattr(store, "free_bytes", lambda: (1 << 20) - 1)
    # THEN no new record is begun, nor a folder for its core, and nothing is left of the attempt
    for begin in (lambda: store.put(KILLED), lambda: store.folder(KILLED.id)):
        with pytest.raises(StoreError) as refused:
            begin()
        assert str(refused.value) == (
            f"{store.path}: no room for new records: 0 MiB are free, and they end at 1 MiB, half "
            "of store.min_free"
        )
    assert [path.name for path in (store.path / "crashes").iterdir()] == [SEGFAULT.id]
    # AND the one that is there may grow
    store.put(msgspec.structs.replace(SEGFAULT, reason="known by now"))
    assert store.get(SEGFAULT.id).reason == "known by now"
    # AND with room again all goes on
    monkeypatch.setattr(store, "free_bytes", lambda: 1 << 20)
    store.put(KILLED)
    assert store.count() == 2
