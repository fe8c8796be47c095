"""What ran out of memory: which level it was, what it was full of, and how long is looked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from collector.agent import oom as oom_stage
from collector.agent.oom import Ooms, full_level
from collector.cli.oom import oom_lines
from collector.linux import memcg, procfs
from collector.model import OomFacts, OomLevel, OomTask
from tests.unit.event_samples import oom

MIB = 1 << 20


def level(identity: int, usage: int, limit: int | None) -> OomLevel:
    limit = None if limit is None else limit * MIB
    return OomLevel(cgroup_id=identity, usage=usage * MIB, limit=limit, failcnt=3)


@pytest.mark.parametrize(
    ("levels", "full"),
    [
        ([], None),
        ([level(1, 90, None), level(2, 900, None)], None),
        ([level(1, 90, 100), level(2, 90, None)], None),  # there is room: the host ran out
        ([level(1, 99, 100), level(2, 90, None)], 1),  # less than a huge page
        ([level(1, 50, 100), level(2, 500, 500)], 2),
        ([level(1, 100, 100), level(2, 100, 100)], 1),  # both are: the nearest
        ([level(1, 101, 100)], 1),  # the limit was lowered
    ],
)
def test_which_level_was_full(levels: list[OomLevel], full: int | None) -> None:
    found = full_level(tuple(levels))
    assert (found and found.cgroup_id) == full


class Tree:
    """A cgroup made of files, and the /proc of its processes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "group"
        self.root.mkdir()
        self.proc: dict[str, bytes] = {}
        self._read = procfs.read
        monkeypatch.setattr(procfs, "read", self.read)

    def read(self, path: str, limit: int = 1 << 20) -> bytes | None:
        return self.proc.get(path) if path.startswith("/proc/") else self._read(path, limit)

    def group(self, name: str, *pids: int) -> None:
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    def process(self, pid: int, pages: int, comm: bytes = b"task") -> None:
        self.proc[f"/proc/{pid}/statm"] = b"9999 %d 1 1 0 1 0\n" % pages
        self.proc[f"/proc/{pid}/comm"] = comm + b"\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_tasks_of_the_whole_tree_the_largest_first(tree: Tree) -> None:
    # GIVEN processes in a cgroup and below; one has ended, one is gone
    tree.group("", 1, 2)
    tree.group("below", 3, 4)
    for pid, pages, comm in ((1, 5, b"small"), (2, 0, b"zombie"), (3, 70, b"a\xff\n b")):
        tree.process(pid, pages, comm)
    found = memcg.tasks(str(tree.root), 16, 60)
    assert found == memcg.Tasks(
        [memcg.Task(3, "a\udcff\n b", 70 * 4096), memcg.Task(1, "small", 5 * 4096)], 4, False
    )


def test_a_crowd_is_cut_off(tree: Tree) -> None:
    # GIVEN a cgroup of 100,000 processes: 588,895 bytes of pids
    tree.group("", *range(1, 100_001))
    found = memcg.tasks(str(tree.root), 16, 60)
    # THEN not all are looked at, and no number is half of one
    assert (found.largest, found.cut) == ([], True)
    assert 40_000 < found.found < 60_000
    # AND only the first ones when the time is over
    tree.process(64, 9)
    tree.process(65, 99)
    late = memcg.tasks(str(tree.root), 16, -1)
    assert late == memcg.Tasks([memcg.Task(64, "task", 9 * 4096)], 64, True)


def test_a_crowd_of_cgroups_is_cut_off(tree: Tree) -> None:
    for number in range(1000):
        tree.group(f"g{number}", number + 1)
    found = memcg.tasks(str(tree.root), 16, 60)
    assert found.cut and found.found <= 256


def test_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert (memcg.stat(gone), memcg.events(gone)) == ({}, {})
    assert memcg.tasks(gone, 16, 60) == memcg.Tasks([], 0, False)


def test_sizes_and_events_of_both_versions(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "memory.stat").write_text(
        "rss 1\npgfault 9\ntotal_rss 70\ntotal_pgfault 9\ntotal_swap 0\n"
    )
    (one / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 2\n")
    (one / "memory.failcnt").write_text("17\n")
    (two / "memory.stat").write_text("anon 70\nfile 0\npgfault 9\nshmem 5\nnonsense x\n")
    (two / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    assert memcg.stat(str(one)) == {"rss": 70}
    assert memcg.events(str(one)) == {
        "oom_kill_disable": 0, "under_oom": 1, "oom_kill": 2, "failcnt": 17,
    }  # fmt: skip
    assert memcg.stat(str(two)) == {"anon": 70, "shmem": 5}
    assert memcg.events(str(two)) == {"low": 0, "high": 0, "max": 9, "oom": 1, "oom_kill": 1}


def test_kills_all_the_time_are_looked_at_ten_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN a container that runs out of memory again and again
    looks: list[OomLevel] = []

    def look(one: OomLevel) -> OomFacts:
        looks.append(one)
        return OomFacts(limit=one.limit)

    monkeypatch.setattr(oom_stage, "_of_cgroup", look)
    now = [0.0]
    ooms = Ooms(lambda: now[0])
    event = msgspec.structs.replace(oom(), levels=(level(1, 100, 100),))
    facts = [ooms.complete(event).facts for _ in range(1000)]
    # THEN ten are looked at, and of the others all is there that BPF told
    assert len(looks) == 10
    assert facts[-1] == OomFacts(
        limit=100 * MIB,
        usage=100 * MIB,
        failcnt=3,
        lost=dict.fromkeys(("stat", "tasks"), "more than 10 kills in a second"),
    )
    now[0] = 1.0
    ooms.complete(event)
    assert len(looks) == 11


def test_without_levels_nothing_is_guessed() -> None:
    facts = Ooms().complete(oom()).facts
    assert facts == OomFacts(lost={"cgroup": "BPF did not tell the memory cgroups"})


def test_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg, "tasks", lambda *_: memcg.Tasks([], 7, True))
    event = msgspec.structs.replace(oom(), levels=(level(1, 5, None),))
    facts = Ooms().complete(event).facts
    assert facts is not None and facts.limit is None and facts.host["MemTotal"] > 0
    assert facts.lost == {"tasks": "there were more than the 7 looked at"}
    assert dict(oom_lines(facts))["of what"] == "the host"


def test_how_it_is_shown() -> None:
    facts = OomFacts(
        cgroup="/a",
        limit=100 * MIB,
        usage=99 * MIB,
        failcnt=3,
        events={"oom": 1, "low": 0},
        stat={"file": MIB, "anon": 98 * MIB},
        tasks=[OomTask(pid=7, comm="hog", resident=98 * MIB)],
        task_count=3,
        lost={"tasks": "there were more"},
    )
    assert list(oom_lines(facts)) == [
        ("of what", "memory cgroup /a"),
        ("in use", "99.0 MiB of 100.0 MiB"),
        ("full of", "anon 98.0 MiB, file 1.0 MiB"),
        ("events", "oom 1"),
        ("tasks", "hog (7) 98.0 MiB, of 3"),
        ("not all tasks", "there were more"),
    ]
    assert list(oom_lines(None)) == []
