"""What the store promises when files are damaged or hostile, or its writers die."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import NotFound, StoreError
from collector.store.schema import VERSION
from collector.store.store import Store
from tests.unit.store_samples import SEGFAULT, numbered

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def listed(store: Store) -> tuple[list[int], list[str]]:
    """Numbers of the records that a new reader lists, and what it says is damaged."""
    damage: list[StoreError] = []
    with Store(store.path, create=False, readonly=True) as reader:
        records = reader.list(on_damage=damage.append)
    return [record.start_ns for record in records], [str(error) for error in damage]


def test_damaged_record_is_named_and_costs_only_itself(store: Store) -> None:
    for number in range(3):
        store.put(numbered(number))
    file = store.path / "crashes" / numbered(1).id / "record.json"
    file.write_text('{"id": ')

    numbers, damage = listed(store)

    assert numbers == [2, 0]
    assert damage == [f"{file}: damaged: Input data was truncated"]
    with pytest.raises(StoreError, match=f"{file}: damaged"):
        store.get(numbered(1).id)
    store.remove(numbered(1).id)
    assert listed(store) == ([2, 0], [])


def test_record_under_another_name_is_damage(store: Store) -> None:
    store.put(numbered(1))
    crashes = store.path / "crashes"
    (crashes / numbered(1).id).rename(crashes / numbered(2).id)

    file = crashes / numbered(2).id / "record.json"
    assert listed(store) == ([], [f"{file}: damaged: it says that it is record '{1:016x}'"])


def test_links_inside_the_store_lead_nowhere(store: Store, tmp_path: Path) -> None:
    # GIVEN a record that is a link to a good one elsewhere, a folder that is a link, a core too
    with Store(tmp_path / "other", create=True) as other:
        for number in range(2):
            other.put(numbered(number))
        elsewhere = other.folder(numbered(0).id)
    crashes = store.path / "crashes"
    (store.folder(numbered(0).id) / "record.json").symlink_to(elsewhere / "record.json")
    (crashes / numbered(1).id).symlink_to(tmp_path / "other" / "crashes" / numbered(1).id)
    store.put(SEGFAULT)
    (store.folder(SEGFAULT.id) / "core").symlink_to("/etc/passwd")

    # WHEN they are used
    numbers, damage = listed(store)

    # THEN none is followed
    refused = "a link, or not what it should be; refused"
    assert numbers == [SEGFAULT.start_ns]
    assert sorted(damage) == [
        f"{crashes / numbered(0).id / 'record.json'}: cannot be read: {refused}",
        f"{crashes / numbered(1).id}: {refused}",
    ]
    with pytest.raises(StoreError, match="not a plain file"):
        store.core_path(SEGFAULT)
    with pytest.raises(StoreError, match="refused"):
        store.put(numbered(1))
    # AND removing takes the links, not what they point to
    store.remove(numbered(1).id)
    store.remove(SEGFAULT.id)
    assert sorted(p.name for p in (tmp_path / "other" / "crashes").iterdir()) == [
        numbered(0).id,
        numbered(1).id,
    ]
    assert Path("/etc/passwd").exists()


def test_fifo_in_place_of_a_record_does_not_block(store: Store) -> None:
    file = store.folder(numbered(0).id) / "record.json"
    os.mkfifo(file)

    assert listed(store) == ([], [f"{file}: not a plain file; refused"])


@pytest.mark.parametrize("contents", [b"this is not a database" * 100, b"SQLite format 3\0" * 300])
def test_damaged_index_is_rebuilt_by_the_agent_and_not_needed_by_readers(
    tmp_path: Path, contents: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path / "store", create=True) as store:
        for number in range(3):
            store.put(numbered(number))
    index = store.path / "index.db"
    index.write_bytes(contents)

    numbers, damage = listed(store)
    assert numbers == [2, 1, 0]
    assert len(damage) == 1
    assert damage[0].startswith(f"{index}: damaged: ")

    with caplog.at_level(logging.WARNING), Store(store.path, create=True) as agent:
        assert [record.start_ns for record in agent.list()] == [2, 1, 0]
    assert "it is rebuilt now" in caplog.text
    assert listed(store) == ([2, 1, 0], [])
    assert (store.path / "index.db.aside").exists()


def test_index_of_a_newer_version_is_refused(store: Store) -> None:
    store.close()
    db = sqlite3.connect(store.path / "index.db")
    db.execute(f"PRAGMA user_version = {VERSION + 3}")
    db.close()

    for create in (True, False):
        with pytest.raises(StoreError) as refused:
            Store(store.path, create=create)
        assert str(refused.value) == (
            f"{store.path / 'index.db'}: has version {VERSION + 3}, this coreward knows versions "
            f"up to {VERSION}: it was written by a newer coreward; use that one"
        )


def test_index_of_an_older_version_is_rebuilt_by_the_agent_and_not_needed_by_readers(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    # GIVEN two records, one closed, and the index that version 1 made of them
    store.put(numbered(0, reason="killed"))
    store.put(numbered(1))
    store.close()
    index = store.path / "index.db"
    index.unlink()
    db = sqlite3.connect(index)
    db.execute("CREATE TABLE deaths (id TEXT PRIMARY KEY, time INTEGER NOT NULL)")
    db.execute("PRAGMA user_version = 1")
    db.close()
    index.chmod(0o600)

    # WHEN a reader looks THEN it does without, and says so
    numbers, damage = listed(store)
    assert numbers == [1, 0]
    assert damage == [
        f"{index}: has version 1, of an older coreward; the agent brings it up to date when it "
        "starts"
    ]

    # WHEN the agent starts THEN it has an index of its own version, and readers have it too
    with caplog.at_level(logging.WARNING), Store(store.path, create=True) as agent:
        assert [record.start_ns for record in agent.list(closed=False)] == [1]
    assert "of an older coreward" in caplog.text
    assert listed(store) == ([1, 0], [])
    assert (store.path / "index.db.aside").exists()


def test_missing_index_is_made_again(store: Store) -> None:
    store.put(numbered(0))
    store.close()
    (store.path / "index.db").unlink()

    numbers, damage = listed(store)
    assert numbers == [0]
    assert damage == [f"{store.path / 'index.db'}: unable to open database file"]
    with Store(store.path, create=True) as agent:
        assert agent.list() == [numbered(0)]


def test_clean_partial_takes_what_nobody_holds(store: Store) -> None:
    # GIVEN a half-written core, a half-removed record, an empty folder, a core without a record
    store.put(numbered(0))
    half = store.folder(numbered(0).id) / ".tmp-core"
    half.write_bytes(b"half")
    gone = store.path / "crashes" / ".tmp-rm-x"
    gone.mkdir()
    (gone / "core").touch()
    store.folder(numbered(1).id)
    orphan = store.folder(numbered(2).id) / "core"
    orphan.touch()
    # AND a temporary file that is in use
    with open(store.folder(numbered(0).id) / ".tmp-held", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        assert store.clean_partial() == 3
        assert sorted(p.name for p in half.parent.iterdir()) == [".tmp-held", "record.json"]
    assert store.clean_partial() == 1

    # THEN the orphan is still there and named
    assert listed(store) == ([0], [f"{orphan.parent}: has a core but no record.json"])
    assert store.count() == 1
    assert store.remove(store.resolve(numbered(2).id)) >= 0
    assert listed(store) == ([0], [])


def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


PUT_MANY = """
import sys, pathlib
from collector.store.store import Store
from tests.unit.store_samples import numbered
first, count = int(sys.argv[2]), int(sys.argv[3])
with Store(pathlib.Path(sys.argv[1]), create=True) as store:
    for number in range(first, first + count):
        store.put(numbered(number))
        print(number, flush=True)
"""


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writers = [run(PUT_MANY, str(path), str(first), "50") for first in (0, 100)]
    first_line = writers[0].stdout
    assert first_line is not None
    first_line.readline()
    with Store(path, create=False) as reader:
        while any(writer.poll() is None for writer in writers):
            reader.list(on_damage=lambda error: pytest.fail(str(error)))
        for writer in writers:
            writer.communicate()
        assert [writer.returncode for writer in writers] == [0, 0]
        assert [record.start_ns for record in reader.list()] == [
            *range(149, 99, -1),
            *range(49, -1, -1),
        ]


def test_killed_writer_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "store"
    said: set[int] = set()
    for turn in range(20):
        # GIVEN a writer that is killed somewhere in a put, at a point that moves
        writer = run(PUT_MANY, str(path), str(turn * 1000), "1000")
        assert writer.stdout is not None
        for _ in range(1 + turn % 4):
            said.add(int(writer.stdout.readline()))
        writer.send_signal(signal.SIGKILL)
        said |= {int(line) for line in writer.communicate()[0].splitlines()}

        # THEN a reader sees every record whose put returned, and no damage
        damage: list[StoreError] = []
        with Store(path, create=False, readonly=True) as reader:
            seen = {record.start_ns for record in reader.list(on_damage=damage.append)}
        assert said <= seen
        assert damage == []

    # AND the next agent brings index and folders together, with nothing partial left
    with Store(path, create=True) as store:
        store.clean_partial()
        numbers = {record.start_ns for record in store.list()}
        assert numbers == seen
        assert store.count() == len(numbers)
    files = {p.name for p in path.rglob("*") if p.is_file()}
    assert files == {"record.json", "index.db"}
    with sqlite3.connect(path / "index.db") as db:
        assert db.execute("SELECT count(*) FROM deaths").fetchone() == (len(numbers),)


REMOVE_ALL = """
import sys, pathlib
from collector.store.store import Store
with Store(pathlib.Path(sys.argv[1]), create=False) as store:
    for id in sorted(store.ids()):
        store.remove(id)
        print(id, flush=True)
"""


def test_killed_remover_leaves_whole_records_only(store: Store) -> None:
    for number in range(60):
        store.put(numbered(number))
    for turn in range(6):
        remover = run(REMOVE_ALL, str(store.path))
        assert remover.stdout is not None
        for _ in range(1 + turn % 3):
            remover.stdout.readline()
        remover.send_signal(signal.SIGKILL)
        remover.communicate()
        numbers, damage = listed(store)
        assert damage == []
        assert numbers == list(range(59, 59 - len(numbers), -1))
    with Store(store.path, create=True) as agent:
        agent.clean_partial()
        left = sorted(p.name for p in (store.path / "crashes").iterdir())
        assert left == sorted(agent.ids())


def test_put_survives_a_removal_at_the_same_time(store: Store) -> None:
    remover = run(
        "import sys, pathlib\n"
        "from collector.errors import NotFound\n"
        "from collector.store.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]), create=False)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for id in store.ids():\n"
        "        try: store.remove(id)\n"
        "        except NotFound: pass\n",
        str(store.path),
    )
    try:
        assert remover.stdout is not None
        remover.stdout.readline()
        for _ in range(200):
            store.put(numbered(0))
    finally:
        remover.kill()
        remover.communicate()
    store.put(numbered(0))
    assert store.list() == [numbered(0)]
    store.remove(numbered(0).id)
    with pytest.raises(NotFound):
        store.get(numbered(0).id)
