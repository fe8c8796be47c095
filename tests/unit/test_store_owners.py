"""What a user sees of root's store: what is left of his own processes, and nothing else."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from collector.agent.owner import reader_of as reader_of_process
from collector.capture.process import OpenProcess
from collector.circumstances import LogLine
from collector.errors import CorewardError, NotFound, StoreError
from collector.linux import acl
from collector.model import KilledBy, Killer, Record
from collector.store.owners import Owners, for_its_reader, reader_of
from collector.store.store import Store
from tests.unit.store_samples import numbered

HIS, ANOTHERS = 54321, 54322
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files for other users")


@pytest.fixture
def store() -> Iterator[Store]:
    """A store where other users can come to: not below a folder of root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            acl.grant(fd, HIS, 5, owner=7)
        except OSError:
            pytest.skip("a file system without access control lists")
        finally:
            os.removexattr(fd, "system.posix_acl_access")
            os.close(fd)
        folder.chmod(0o755)
        with Store(folder / "store", create=True) as store:
            yield store
    finally:
        shutil.rmtree(folder)


def put(store: Store, number: int, uid: int | None, **changes: Any) -> Record:
    record = numbered(number, uid=uid, readable_by=uid, reason="it died", core="core", **changes)
    (store.folder(record.id) / "core").write_bytes(b"a core")
    (store.folder(record.id) / "core").chmod(0o600)
    store.put(record)
    return record


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """What `work` gives, or raises, as this user in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            answer = work()
        except Exception as error:
            answer = error
        try:
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        answer = pickle.loads(stream.read())
    os.waitpid(child, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


def seen(store: Store) -> list[int]:
    with Store(store.path, create=False, readonly=True) as reader:
        damage: list[StoreError] = []
        found = [record.start_ns for record in reader.list(on_damage=damage.append)]
        assert damage == []
        return found


@as_root
def test_a_user_reads_his_own_and_no_others(store: Store) -> None:
    his, others, roots = put(store, 1, HIS), put(store, 2, ANOTHERS), put(store, 3, None)
    assert as_user(HIS, lambda: seen(store)) == [1]
    assert as_user(ANOTHERS, lambda: seen(store)) == [2]

    def core_of(record: Record) -> bytes:
        with Store(store.path, create=False, readonly=True) as reader:
            path = reader.core_path(reader.get(record.id))
            assert path is not None
            return path.read_bytes()

    assert as_user(HIS, lambda: core_of(his)) == b"a core"
    for record in (others, roots):
        with pytest.raises(NotFound):
            as_user(HIS, lambda record=record: core_of(record))  # type: ignore[misc]
        folder = store.path / "crashes" / record.id
        for what in (os.listdir, lambda path: (path / "record.json").read_bytes()):
            with pytest.raises(PermissionError):
                as_user(HIS, lambda what=what, folder=folder: what(folder))  # type: ignore[misc]
    # AND he can list neither the crashes, nor who has any, nor read the index
    for path in (store.path, store.path / "crashes", store.path / "owners"):
        with pytest.raises(PermissionError):
            as_user(HIS, lambda path=path: [*path.iterdir()])  # type: ignore[misc]
    with pytest.raises(PermissionError):
        as_user(HIS, (store.path / "index.db").read_bytes)
    # AND who has none is told so
    with pytest.raises(CorewardError, match="none of the crashes is yours to read"):
        as_user(7, lambda: seen(store))
    # AND the agent starts again with that store
    store.close()
    with Store(store.path, create=True) as agent:
        assert len(agent.list()) == 3


@as_root
def test_a_user_removes_his_own_and_no_others(store: Store) -> None:
    his, others = put(store, 1, HIS), put(store, 2, ANOTHERS)

    def remove(id: str) -> None:
        with Store(store.path, create=False) as own:
            own.remove(id)

    as_user(HIS, lambda: remove(his.id))
    with pytest.raises(NotFound):
        as_user(HIS, lambda: remove(others.id))
    assert as_user(HIS, lambda: seen(store)) == []
    # WHEN he claims another's by a name in his folder, and leaves what is no name there
    claimed = store.path / "owners" / str(HIS) / f"{others.id}.gone"
    as_user(HIS, claimed.touch)
    as_user(HIS, claimed.with_name("x").mkdir)
    # THEN the agent removes his alone
    assert store.sweep() == 1
    assert [record.start_ns for record in store.list()] == [2]
    assert as_user(ANOTHERS, lambda: seen(store)) == [2]
    assert [path.name for path in claimed.parent.iterdir()] == ["x"]
    # AND a name whose record root has removed goes as well
    store.remove(others.id)
    assert store.sweep() == 0
    assert list((store.path / "owners" / str(ANOTHERS)).iterdir()) == []


@as_root
def test_it_stays_readable_when_its_core_goes(store: Store) -> None:
    his = put(store, 1, HIS)
    store.remove_cores([his.id], "no room")
    assert as_user(HIS, lambda: seen(store)) == [1]


@as_root
def test_where_there_are_no_lists_it_stays_roots(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(acl, "grant", none)
    put(store, 1, HIS)
    assert "stays root's" in caplog.text
    assert len(store.list()) == 1


def test_whose_it_is() -> None:
    def killed_by(uid: int | None) -> Killer:
        return Killer(by=KilledBy.PROCESS, pid=5, uid=uid, cmdline=["x", "--password=y"])

    mine = numbered(1, readable_by=HIS, reason="it died")
    assert reader_of(mine) == HIS
    assert reader_of(msgspec.structs.replace(mine, killer=killed_by(HIS))) == HIS
    assert reader_of(msgspec.structs.replace(mine, killer=killed_by(0))) is None
    assert reader_of(msgspec.structs.replace(mine, killer=Killer(by=KilledBy.EXEC))) == HIS
    # lines of the journal are of all that ran in its unit
    line = LogLine(time=mine.time, pid=1, message="password=y")
    logged = msgspec.structs.replace(mine, logs=[line])
    assert reader_of(logged) is None
    # so they are left out, but of a system service they are kept, and the record is root's
    session = msgspec.structs.replace(logged, unit="session-3.scope")
    assert reader_of(for_its_reader(session)) == HIS
    assert for_its_reader(session).lost == {
        "logs": "left out, for its user may read this record, and not the journal"
    }
    service = msgspec.structs.replace(logged, unit="db.service")
    assert for_its_reader(service) == service
    roots = msgspec.structs.replace(session, readable_by=None)
    assert for_its_reader(roots) == roots
    # while it is written its files are not all there
    assert reader_of(msgspec.structs.replace(mine, reason=None)) is None
    assert reader_of(numbered(1, reason="it died")) is None


@pytest.mark.parametrize(
    ("uids", "gids", "owner", "reader"),
    [
        ("5 5 5 5", "6 6 6 6", 5, 5),
        ("5 0 0 0", "6 6 6 6", 5, None),
        ("5 5 0 5", "6 6 6 6", 5, None),
        ("5 5 5 5", "6 6 0 6", 5, None),
        ("5 5 5 5", "6 6 6 6", 0, None),  # not dumpable
        ("0 0 0 0", "0 0 0 0", 0, None),
        ("", "", 5, None),
    ],
)
def test_who_could_have_looked_into_a_process(
    monkeypatch: pytest.MonkeyPatch, uids: str, gids: str, owner: int, reader: int | None
) -> None:
    status = "".join(f"{name}:\t{ids}\n".replace(" ", "\t") for name, ids in _ids(uids, gids))
    fake = SimpleNamespace(fstat=lambda fd: SimpleNamespace(st_uid=owner))
    monkeypatch.setattr("collector.agent.owner.os", fake)
    dying = SimpleNamespace(text=SimpleNamespace(status=status.encode()), mem_fd=3)
    assert reader_of_process(cast(OpenProcess, dying)) == reader


def _ids(uids: str, gids: str) -> list[tuple[str, str]]:
    return [(name, ids) for name, ids in (("Uid", uids), ("Gid", gids)) if ids]


def test_nobody_has_anything_in_a_store_without_owners(tmp_path: Path) -> None:
    assert not Owners(tmp_path).has(5)
    assert Owners(tmp_path).sweep(lambda _: pytest.fail(), lambda _: pytest.fail()) == 0
