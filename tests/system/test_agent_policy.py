"""What a rule says is what happens: captures, memory, limits, release, compression.

One agent with one rule for each test; a victim falls under a rule by the name of its program.
The pairs of BPF loader and hand-off are those that test_agent_victims.py does not have.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent
from tests.system.needs import by_socket
from tests.system.victims import build, running

PAGE = 4096
SMALLER = ("threads", "record")
CONFIG = """
defaults: {limit: none}
rules:
  - {name: stacks, match: {exe: "*/stacks"}, capture: stacks}
  - {name: threads, match: {exe: "*/threads"}, capture: threads}
  - {name: record, match: {exe: "*/record"}, capture: record}
  - {name: none, match: {exe: "*/none"}, capture: none}
  - {name: no-shm, match: {exe: "*/no-shm"}, memory: {exclude: [shm]}}
  - {name: file, match: {exe: "*/file"}, memory: {include: ["*/mapped.bin"]}}
  - {name: dontdump, match: {exe: "*/dontdump"}, memory: {dontdump: true}}
  - {name: headers, match: {exe: "*/headers"}, memory: {coredump_filter: 0x10}}
  - {name: max, match: {exe: "*/max"}, memory: {max: 8MiB}}
  - {name: plain, match: {exe: "*/plain"}, compress: none}
  - {name: held, match: {exe: "*/held"}, release: after-write}
  - {name: rlimit, match: {exe: "*/rlimit"}, honour_rlimit: true}
  - name: limit
    match: {exe: "*/limit"}
    limit: {captures: 1, period: 1h, fallback: threads}
"""


@pytest.fixture(
    scope="module", params=[("core", "pipe"), by_socket(("core", "socket"))], ids="-".join
)
def ruled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    loader, backend = request.param
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=CONFIG, backend=backend, loader=loader, metrics=True) as one:
        yield one


def die_as(
    ruled: RunningAgent, rule: str, victim: str, *arguments: str, folder: Path, **how: Any
) -> dict[str, Any]:
    """The record of a victim that falls under a rule."""
    program = folder / rule
    shutil.copy(build(victim), program)
    with running(victim, *arguments, cwd=folder, file=program, **how) as process:
        process.go()
        process.wait()
    record = ruled.record(process.pid)
    assert record["rule"] == rule
    return record


def kept(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("capture_wanted", "capture", "outcome", "core", "lost")
    return {key: record[key] for key in keys}


def whole(capture: str, core: str = "core.zst") -> dict[str, Any]:
    return {
        "capture_wanted": capture,
        "capture": capture,
        "outcome": "complete",
        "core": core,
        "lost": {},
    }


def core_of(ruled: RunningAgent, record: dict[str, Any]) -> Path:
    return ruled.store / "crashes" / record["id"] / record["core"]


def innermost(record: dict[str, Any]) -> list[str | None]:
    frames = [f for f in record["frames"] if f["module"] == record["exe"]]
    return [f["function"] for f in frames if f["function"] != "_start"]


def gdb(record: dict[str, Any], core: Path, *commands: str) -> str:
    arguments = [part for command in ("echo begin\\n", *commands) for part in ("-ex", command)]
    command = ["gdb", "-q", "-nx", "-batch", record["exe"], str(core), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.partition("begin\n")[2]


# ---- how much is kept


def test_stacks_have_every_threads_backtrace(ruled: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process of 51 threads dies of which only stacks are kept
    record = die_as(ruled, "stacks", "threads", "50", folder=tmp_path)
    # THEN the core is small, and gdb shows what every thread was doing
    assert kept(record) == whole("stacks")
    assert record["core_memory"] < 2 << 20
    core = ruled.core(record, tmp_path / "core")
    names = re.findall(r" in (\w+) \(", gdb(record, core, "thread apply all -q bt"))
    assert Counter(name for name in names if name in ("sleeper", "main")) == {
        "sleeper": 49,
        "main": 1,
    }
    assert gdb(record, core, "frame function crasher").startswith("#1 ")


def test_threads_have_registers_and_no_memory(ruled: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process dies of which only the registers are kept
    record = die_as(ruled, "threads", "threads", "50", folder=tmp_path)
    # THEN the core has all threads and not a byte of memory
    assert kept(record) == whole("threads")
    assert record["core_memory"] == 0
    with CoreFile(core_of(ruled, record)) as core:
        assert len(core.threads) == 51
        assert core.threads[0].regs[16] == record["ip"]
        assert [p for p in core.segments if p.segment.filesz] == []
    # AND the record has the backtrace, which was made from the process itself
    assert innermost(record) == ["crash", "crasher"]


def test_a_record_has_a_backtrace_and_no_core(ruled: RunningAgent, tmp_path: Path) -> None:
    record = die_as(ruled, "record", "null_main", folder=tmp_path)
    assert kept(record) == {
        "capture_wanted": "record",
        "capture": "record",
        "outcome": "recorded",
        "core": None,
        "lost": {},
    }
    assert record["reason"] == "SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)"
    folder = ruled.store / "crashes" / record["id"]
    assert [path.name for path in folder.iterdir()] == ["record.json"]


def test_none_is_only_counted(ruled: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program of which policy wants nothing
    program = tmp_path / "none"
    shutil.copy(build("null_main"), program)
    sample = 'coreward_deaths_total{cause="signal",outcome="ignored",signal="SIGSEGV"}'
    before = ruled.metric(sample)
    with running("null_main", cwd=tmp_path, file=program) as victim:
        victim.go()
        victim.wait()
    # WHEN a later death is on record
    die_as(ruled, "record", "null_main", folder=tmp_path)
    # THEN it is not, and it was counted
    assert [death for death in ruled.listed() if death["pid"] == victim.pid] == []
    assert ruled.metric(sample) == before + 1


# ---- which memory


def marks(core: Path) -> set[str]:
    """The capital letters of which the core has a whole page; see tests/victims/mixed.c."""
    found = set()
    with CoreFile(core) as file:
        for placed in file.segments:
            data = file.read(placed.segment.vaddr, placed.segment.filesz)
            pages = {data[at : at + PAGE] for at in range(0, len(data), PAGE)}
            found |= {chr(page[0]) for page in pages if page == page[:1] * PAGE}
    return {letter for letter in found if letter in "ABDGHMPS"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("plain", "ABGHMP"),  # the kernel's own choice: not D(ONTDUMP), not S(hared file)
        ("no-shm", "AGHP"),
        ("file", "ABGHMPS"),
        ("dontdump", "ABDGHMP"),
        ("headers", ""),
    ],
)
def test_which_memory(ruled: RunningAgent, rule: str, expected: str, tmp_path: Path) -> None:
    # WHEN a process with one mapping of each kind dies
    record = die_as(ruled, rule, "mixed", str(tmp_path / "mapped.bin"), folder=tmp_path)
    # THEN its core has those that the rule keeps
    assert kept(record) == whole("full", core="core" if rule == "plain" else "core.zst")
    assert "".join(sorted(marks(core_of(ruled, record)))) == expected


def test_a_core_ends_at_its_largest_size(ruled: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process of 64 MiB dies of which 8 MiB may be kept
    record = die_as(ruled, "max", "resident", "64", "4", "random", folder=tmp_path)
    # THEN the record and the core itself say what is missing
    assert record["outcome"] == "truncated"
    assert record["core_memory"] <= 8 << 20
    assert re.fullmatch(
        r"\d+ bytes are beyond the limit on the core's size", record["lost"].pop("memory")
    )
    assert record["lost"] == {}
    with CoreFile(core_of(ruled, record)) as core:
        assert core.truncated
        assert core.coreward_note is not None
        assert core.coreward_note.record == record["id"]
        assert core.coreward_note.left_out_bytes > 50 << 20
    # AND it is a good core still: the stacks came first
    core = ruled.core(record, tmp_path / "core")
    assert re.findall(r"^#\d+ .*?(\w+) \(", gdb(record, core, "bt"), re.MULTILINE) == [
        "crash",
        "main",
    ]


# ---- how it is written, and when the process goes


def test_a_plain_core_has_holes(ruled: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process with untouched memory dies whose core is not compressed
    record = die_as(ruled, "plain", "threads", "50", folder=tmp_path)
    # THEN the file is an ELF file that takes less room than its size
    core = core_of(ruled, record)
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert core.stat().st_blocks * 512 == record["core_size"] < core.stat().st_size // 2
    assert (core.stat().st_mode & 0o777, core.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_process_that_must_wait_for_its_core(ruled: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program whose scratch files belong to its core
    program = tmp_path / "held"
    shutil.copy(build("resident"), program)
    with running("resident", "64", "2", "random", cwd=tmp_path, file=program) as victim:
        # WHEN its parent learns that it is gone
        victim.go()
        victim.wait()
        cores = list(ruled.store.glob("crashes/*/core.zst"))
        # THEN the core is there already
        record = ruled.record(victim.pid)
    assert core_of(ruled, record) in cores
    assert kept(record) == whole("full")
    assert (record["release"], record["release_reason"]) == ("after-write", "policy")
    assert record["held_ms"] > 0


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_the_process_s_own_limit(ruled: RunningAgent, limit: int, tmp_path: Path) -> None:
    # WHEN a process dies whose RLIMIT_CORE policy honours
    record = die_as(ruled, "rlimit", "heap_abort", "64", folder=tmp_path, core_limit=limit)
    # THEN its core has no more memory than that, and 0 means none
    if limit:
        assert record["outcome"] == "truncated"
        assert 0 < record["core_memory"] <= limit
    else:
        assert kept(record) == {
            "capture_wanted": "full",
            "capture": "record",
            "outcome": "reduced",
            "core": None,
            "lost": {"memory": "the process's RLIMIT_CORE is 0"},
        }
    assert innermost(record) == ["check_invariant", "run", "main"]


def test_captures_beyond_a_limit_get_smaller(ruled: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a limit of one full capture, and four smaller ones, in an hour
    before = [
        ruled.metric(f'coreward_captures_limited_total{{capture="{kind}"}}') for kind in SMALLER
    ]
    # WHEN the same program dies six times
    records = [die_as(ruled, "limit", "null_main", folder=tmp_path) for _ in range(6)]
    # THEN the captures get smaller, and each record says why
    assert [(record["capture"], record["outcome"]) for record in records] == [
        ("full", "complete"),
        *[("threads", "reduced")] * 4,
        ("record", "reduced"),
    ]
    full = "limit of 1 full captures per 1h used up for this executable"
    small = "limit of 4 smaller captures per 1h used up for this executable"
    assert [record["lost"].get("memory") for record in records] == [
        None,
        *[full] * 4,
        f"{full}; {small}",
    ]
    after = [
        ruled.metric(f'coreward_captures_limited_total{{capture="{kind}"}}') for kind in SMALLER
    ]
    assert [late - early for early, late in zip(before, after, strict=True)] == [4, 1]


def test_copies_of_a_program_that_abort_are_one(ruled: RunningAgent, tmp_path: Path) -> None:
    # GIVEN copies of two programs that call abort(3), which all stand in libc then
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    one, copy, other = folders
    # WHEN they die
    records = [
        die_as(ruled, "limit", "assertion", folder=one),
        die_as(ruled, "limit", "assertion", folder=copy),
        die_as(ruled, "limit", "heap_abort", "1", folder=other),
    ]
    # THEN who called it is the site that the limit counts
    used_up = "limit of 1 full captures per 1h used up for this crash site"
    assert [record["lost"].get("memory") for record in records] == [None, used_up, None]
