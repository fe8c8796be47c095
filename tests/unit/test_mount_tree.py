"""What is behind the names of a mount: who sees what, who shares what, what is given up when."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes
from collector.elfcore.sink import WriterParams, ZstdWriter
from collector.errors import CaptureError, CoreFormatError
from collector.model import Cause, Record
from collector.mount.crashes import Crashes
from collector.mount.live import Live, LiveRules
from collector.mount.tree import About, OpenCore, Tree, Viewer
from collector.redact.types import Redact
from collector.store.store import Store
from tests.unit.elfcore_samples import image, segment
from tests.unit.store_samples import SEGFAULT

OWNER, ALLOWED, STRANGER = 1000, 1001, 1002


class FakeCore:
    """An OpenCore that says what was done with it."""

    lasting = False

    def __init__(self, name: str, stays: bool) -> None:
        self.name, self.stays, self.closed = name, stays, False
        self.give_up: Callable[[], None] | None = None
        self.error: Exception | None = None

    def size(self) -> int:
        return 7

    def is_ready(self) -> bool:
        return True

    def when_ready(self, call: Callable[[], None]) -> None:
        call()

    def read(self, offset: int, length: int) -> bytes:
        if self.error is not None:
            raise self.error
        return self.name.encode()[offset : offset + length]

    def data_at(self, offset: int) -> tuple[int, int] | None:
        """Data at [2, 4)."""
        return (max(offset, 2), 4) if offset < 4 else None

    def idle(self, give_up: Callable[[], None]) -> bool:
        self.give_up = give_up
        return self.stays

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeFolder:
    """A Folder with any name that begins with a letter; `l…` are links, `s…` stay."""

    def __init__(self) -> None:
        self.opened: list[FakeCore] = []

    def names(self, viewer: Viewer) -> list[str]:
        return ["core", f"of {viewer}"]

    def about(self, name: str, viewer: Viewer) -> About:
        if not name[0].isalpha():
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return About(3, disk=512, time_ns=9, uid=viewer or 0, is_link=name.startswith("l"))

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        return f"{name}.{pid}"

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        self.opened.append(FakeCore(name, stays=name.startswith("s")))
        return self.opened[-1]


def tree(folder: FakeFolder | None = None) -> Tree:
    return Tree({"live": folder or FakeFolder()}, OWNER, [ALLOWED])


def number(work: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as error:
        work()
    return error.value.errno


def test_directories_files_and_links() -> None:
    found = tree()
    assert stat.S_ISDIR(found.attributes("/", 0).mode)
    assert stat.S_ISDIR(found.attributes("/live", 0).mode)
    about = found.attributes("/live/core", 0)
    assert (about.mode, about.size, about.disk, about.time_ns) == (stat.S_IFREG | 0o400, 3, 512, 9)
    assert stat.S_ISLNK(found.attributes("/live/link", 0).mode)
    assert found.link("/live/link", 0, 77) == "link.77"
    assert (found.list("/", 0), found.list("/live", 0)) == (["live"], ["core", "of None"])


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda t: t.attributes("/other", 0), errno.ENOENT),
        (lambda t: t.attributes("/live/core/deeper", 0), errno.ENOENT),
        (lambda t: t.attributes("/live/0", 0), errno.ENOENT),
        (lambda t: t.list("/live/core", 0), errno.ENOTDIR),
        (lambda t: t.link("/live/core", 0, 1), errno.EINVAL),
        (lambda t: t.open("/live", 0), errno.EISDIR),
        (lambda t: t.open("/", 0), errno.EISDIR),
        (lambda t: t.attributes("/", STRANGER), errno.EACCES),
        (lambda t: t.open("/live/core", STRANGER), errno.EACCES),
    ],
)
def test_what_is_refused(work: Callable[[Tree], object], expected: int) -> None:
    assert number(lambda: work(tree())) == expected


def test_owner_and_root_see_all_and_others_what_is_theirs() -> None:
    found = tree()
    assert found.list("/live", OWNER) == ["core", "of None"]
    assert found.list("/live", ALLOWED) == ["core", f"of {ALLOWED}"]
    everyone = Tree({"live": FakeFolder()}, OWNER, None)
    assert everyone.list("/live", STRANGER) == ["core", "of None"]


def test_a_name_has_one_core_while_it_is_open() -> None:
    folder = FakeFolder()
    found = tree(folder)
    first, core = found.open("/live/core", 0)
    second, same = found.open("/live/core", OWNER)
    assert core is same
    assert found.attributes("/live/core", 0).size == 7  # the exact one, not the estimate
    found.close(first)
    assert found.read(second, 1, 2) == b"or"
    found.close(second)
    assert folder.opened[0].closed
    _, other = found.open("/live/core", 0)
    assert other is not core
    found.close_all()
    assert [core.closed for core in folder.opened] == [True, True]


def test_a_snapshot_of_another_user_is_not_joined() -> None:
    """It may be of a moment at which the process had more rights than now."""
    found = tree()
    found.open("/live/core", 0)
    assert number(lambda: found.open("/live/core", ALLOWED)) == errno.EBUSY


def test_what_stays_is_given_up_when_it_says_so_and_nobody_has_it() -> None:
    folder = FakeFolder()
    found = tree(folder)
    handle, core = found.open("/live/stays", 0)
    found.close(handle)
    handle, again = found.open("/live/stays", 0)
    assert again is core
    kept = folder.opened[0]
    assert kept.give_up is not None
    kept.give_up()  # somebody has it open again
    assert not kept.closed
    found.close(handle)
    kept.give_up()
    assert kept.closed
    kept.give_up()  # once is enough
    _, other = found.open("/live/stays", 0)
    assert other is not core


@pytest.mark.parametrize("error", [CaptureError("it ended"), OSError("no number")])
def test_errors_without_a_number_are_eio_and_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    folder = FakeFolder()
    found = tree(folder)
    handle, _ = found.open("/live/core", 0)
    folder.opened[0].error = error
    with caplog.at_level(logging.WARNING):
        assert number(lambda: found.read(handle, 0, 1)) == errno.EIO
    assert caplog.messages == [f"/live/core: {error}"]


# --- the folders ----------------------------------------------------------------------------------


def core_bytes(auxv: bytes) -> bytes:
    layout = Layout(
        [segment(0x400000, 4096)], build_notes(msgspec.structs.replace(image(), auxv=auxv))
    )
    return layout.header.ljust(layout.size, b"x")


ORDINARY = core_bytes((23).to_bytes(8, "little") + bytes(24))  # AT_SECURE is 0
SETUID = core_bytes((23).to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(16))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def kept(store: Store, letter: str, data: bytes, **changed: object) -> Record:
    """A crash of ALLOWED with this core, under an id of one letter."""
    record = msgspec.structs.replace(SEGFAULT, id=letter * 16, uid=ALLOWED, **changed)
    store.put(record)
    path = store.folder(record.id) / (record.core or "core")
    if path.suffix == ".zst":
        with path.open("wb") as file:
            writer = ZstdWriter(file.fileno())
            writer.init(WriterParams(size=len(data)))
            writer.write(data, 0)
            writer.close()
    else:
        path.write_bytes(data)
    return record


def test_crashes_are_the_plain_files(store: Store) -> None:
    kept(store, "a", ORDINARY, core="core.zst")
    kept(store, "b", ORDINARY, core="core")
    store.put(msgspec.structs.replace(SEGFAULT, id="c" * 16, core=None))
    folder = Crashes(store)
    assert sorted(folder.names(None)) == ["a" * 16 + ".core", "b" * 16 + ".core"]
    for name in folder.names(None):
        assert folder.about(name, None).size == len(ORDINARY)
        core = folder.open(name, None)
        assert core.read(0, core.size()) == ORDINARY
        assert core.lasting
        core.close()
    for name in ("c" * 16 + ".core", "a" * 16, "../a.core", ".core"):
        with pytest.raises(FileNotFoundError):
            folder.about(name, None)


def test_a_damaged_core_is_listed_and_not_opened(store: Store) -> None:
    record = kept(store, "a", ORDINARY, core="core.zst")
    path = store.folder(record.id) / "core.zst"
    path.write_bytes(path.read_bytes()[:-1])
    folder = Crashes(store)
    (name,) = folder.names(None)
    assert folder.about(name, None).size == 0
    with pytest.raises(CoreFormatError, match="without a seek table"):
        folder.open(name, None)


def test_others_see_the_crashes_of_their_own_programs(store: Store) -> None:
    kept(store, "a", ORDINARY, core="core.zst")
    kept(store, "b", SETUID, core="core")
    kept(store, "c", ORDINARY, core="core", cause=Cause.SNAPSHOT)
    kept(store, "d", b"no core at all", core="core")
    folder = Crashes(store)
    assert len([*folder.names(None)]) == 4
    assert [*folder.names(ALLOWED)] == ["a" * 16 + ".core"]
    assert [*folder.names(STRANGER)] == []
    assert folder.about("a" * 16 + ".core", ALLOWED).uid == ALLOWED
    for letter, viewer in (("a", STRANGER), ("b", ALLOWED), ("c", ALLOWED)):
        with pytest.raises(FileNotFoundError):
            folder.open(letter * 16 + ".core", viewer)


def test_names_of_live_processes() -> None:
    pid = os.getpid()
    folder, shared = (
        Live(LiveRules(), lambda _: Redact()),
        Live(LiveRules(share=True), lambda _: Redact()),
    )
    assert f"{pid}.core" in folder.names(None)
    assert folder.about(f"{pid}.core", None).is_link
    assert not shared.about(f"{pid}.core", None).is_link
    assert folder.about(f"{pid}.my-label_1.core", None).size > 0
    assert folder.link(f"{pid}.core", None, pid) == f"{pid}.by-{pid}.core"
    for name in ("0.core", "01.core", f"{pid}", f"{pid}.a/b.core", f"{pid}..core", "x.core"):
        with pytest.raises(FileNotFoundError):
            folder.about(name, None)


def test_live_processes_of_others_are_not_seen() -> None:
    pid, folder = os.getpid(), Live(LiveRules(), lambda _: Redact())
    stranger = os.getuid() + 4711
    assert f"{pid}.core" not in folder.names(stranger)
    with pytest.raises(FileNotFoundError):
        folder.about(f"{pid}.core", stranger)
    if os.getuid():  # /proc/PID of root's own processes tells nothing: root owns the others too
        assert f"{pid}.core" in folder.names(os.getuid())


def test_data_and_holes_as_lseek_has_them() -> None:
    tree = Tree({"live": FakeFolder()}, OWNER, None)
    handle, _ = tree.open("/live/a", OWNER)
    # GIVEN a core of 7 bytes with data at [2, 4)
    found = [
        (tree.seek(handle, at, data=True) if at < 4 else None, tree.seek(handle, at, data=False))
        for at in range(7)
    ]
    assert found == [(2, 0), (2, 1), (2, 4), (3, 4), (None, 4), (None, 5), (None, 6)]
    # THEN there is no data behind it, and nothing at all behind its end
    for at, data in ((4, True), (7, True), (7, False), (-1, False)):
        with pytest.raises(OSError) as error:
            tree.seek(handle, at, data=data)
        assert error.value.errno == errno.ENXIO
