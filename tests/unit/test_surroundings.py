"""What else was true: the host, what lies above a process, its open files, its unit's log."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from collector.capture.environment import attributes
from collector.circumstances import Descriptor, HostFacts, LogLine, Package
from collector.cli.around import around_lines, log_lines
from collector.cli.why import diagnosis_lines
from collector.diagnosis import (
    Category,
    Confidence,
    Diagnosis,
    Evidence,
    Instruction,
    Mapping,
)
from collector.errors import CorewardError
from collector.linux import ancestry, journal, procfs
from collector.linux.ancestry import with_ancestors
from collector.linux.host import age_s, read_host
from collector.linux.open_files import kind_of, open_files
from collector.model import Relative
from tests.unit.store_samples import SEGFAULT

NOW = datetime.datetime(2026, 11, 21, 3, tzinfo=datetime.UTC)


def test_the_host_names_itself() -> None:
    host = read_host()
    assert (host.name, host.kernel) == (os.uname().nodename, os.uname().release)
    assert host.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_an_age_needs_a_start() -> None:
    assert age_s(NOW, 0) is None
    assert age_s(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), 1) == 0.0  # of a wrong clock


def test_the_processes_above_this_one() -> None:
    stat = ancestry.stat_of(os.getpid())
    assert stat is not None
    found, why = with_ancestors([], stat.ppid, stat.start_ns)
    assert why is None
    assert (found[0].pid, found[-1].pid) == (os.getppid(), 1)


def fake_processes(
    monkeypatch: pytest.MonkeyPatch, parent_of: Callable[[int], int], start_of: Callable[[int], int]
) -> None:
    def stat_of(pid: int) -> procfs.Stat | None:
        words = [b"S", b"%d" % parent_of(pid), *[b"0"] * 17, b"%d" % start_of(pid), *[b"0"] * 31]
        return procfs.parse_stat(b"%d (p%d) " % (pid, pid) + b" ".join(words))

    monkeypatch.setattr(ancestry, "stat_of", stat_of)


def test_a_parent_is_never_younger_than_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN process 20 below 10, whose pid another one has by now
    fake_processes(monkeypatch, lambda pid: pid - 10, lambda pid: 900 if pid == 10 else 500)
    # WHEN the parents of a process that started at tick 600 are looked up
    found, why = with_ancestors([], 20, 6_000_000_000)
    # THEN that one is none of them
    assert found == [Relative(pid=20, comm="p20")]
    assert why == "process 20 was gone when its parent was looked up"


def test_not_more_are_looked_up_than_a_person_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_processes(monkeypatch, lambda pid: pid + 1, lambda _: 1)
    found, why = with_ancestors([], 2, 1 << 60)
    assert (len(found), why) == (64, "more than 64")


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/var/log/shop", "file"),
        ("/dev/null", "device"),
        ("/memfd:shop (deleted)", "memfd"),
        ("pipe:[812]", "pipe"),
        ("socket:[813]", "socket"),
        ("anon_inode:[eventfd]", "eventfd"),
        ("anon_inode:inotify", "inotify"),
        ("nonsense\n", "other"),
    ],
)
def test_what_a_descriptor_is(target: str, kind: str) -> None:
    assert kind_of(target) == kind


def test_the_open_files_of_this_process() -> None:
    with tempfile.NamedTemporaryFile() as file:
        found, count = open_files(os.getpid())
        assert Descriptor(fd=file.fileno(), kind="file", target=file.name) in found
        assert count >= len(found)


# ---- attributes of the environment

STAT = b"812 (victim) S 1" + b" 0" * 45 + b" 4096 %d 0"
MEMORY = b"RELEASE=2.3\0SECRET=x\0ROLE=\0RELEASE=again\0EMPTY\0BAD=\xff\0"


def told(*names: str, size: int = len(MEMORY)) -> dict[str, str]:
    return attributes(STAT % (4096 + size), names, lambda at, n: MEMORY[at - 4096 :][:n])


def test_only_what_is_named_is_told() -> None:
    assert told("RELEASE", "ROLE", "MISSING", "EMPTY") == {"RELEASE": "2.3", "ROLE": ""}
    assert told("BAD") == {"BAD": "\ufffd"}
    assert told() == {}
    assert told("RELEASE", size=0) == {}
    assert told("RELEASE", size=-1) == {}


def test_a_long_value_is_cut() -> None:
    long = b"RELEASE=" + b"x" * 5000 + b"\0"
    found = attributes(STAT % (4096 + len(long)), ["RELEASE"], lambda at, n: long[:n])
    assert found == {"RELEASE": "x" * 1024}


# ---- the journal

ENTRIES = r"""{"__REALTIME_TIMESTAMP":"1795230000123456","_PID":"812","MESSAGE":"starting"}
not json
{"_PID":"812","MESSAGE":"without a time"}
{"__REALTIME_TIMESTAMP":"1795230001000000","MESSAGE":[27,91,255,10]}
{"__REALTIME_TIMESTAMP":"99999999999999999999","_PID":"812","MESSAGE":"never"}
"""


def journalctl(folder: Path, script: str) -> str:
    """A program that passes for journalctl."""
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_the_last_lines_of_a_unit(tmp_path: Path) -> None:
    # GIVEN a journal with entries, some of them nonsense
    (tmp_path / "entries").write_text(ENTRIES)
    program = journalctl(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/entries')
    # WHEN it is asked for the last 50 of a unit
    found = journal.last_lines("shop.service", 50, NOW, uid=1000, program=program, seconds=60)
    # THEN those that make sense are told, the last ones last
    assert found == [
        LogLine(
            time=datetime.datetime.fromtimestamp(1795230000.123456, datetime.UTC),
            pid=812,
            message="starting",
        ),
        LogLine(
            time=datetime.datetime.fromtimestamp(1795230001, datetime.UTC),
            pid=None,
            message="\x1b[\ufffd\n",
        ),
    ]
    asked = (tmp_path / "asked").read_text()
    assert asked.split() == [
        *("--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_PID"),
        *("--lines=50", f"--until=@{NOW.timestamp():.6f}", "_SYSTEMD_UNIT=shop.service"),
        "_UID=1000",
    ]


@pytest.mark.parametrize(
    ("script", "seconds", "why"),
    [
        ("exit 3", 60.0, "ended with status 3"),
        ("exec sleep 1000", 0.2, "the journal was not read within 0.2 s"),
    ],
)
def test_a_journal_that_cannot_be_read(
    script: str, seconds: float, why: str, tmp_path: Path
) -> None:
    program = journalctl(tmp_path, script)
    with pytest.raises(CorewardError, match=why):
        journal.last_lines("shop.service", 50, NOW, program=program, seconds=seconds)


def test_a_host_without_a_journal(tmp_path: Path) -> None:
    with pytest.raises(CorewardError, match="is not there"):
        journal.last_lines("shop.service", 50, NOW, program=str(tmp_path / "none"))


# ---- what `info` shows


def test_what_a_diagnosis_rests_on() -> None:
    # GIVEN the diagnosis of a write to a page below a thread's stack
    guard = Mapping(start=0x1000, end=0x2000, permissions="---")
    stack = Mapping(start=0x2000, end=0x9000, permissions="rw-", distance=8)
    far = Mapping(start=0x10, end=0x20, permissions="r--", distance=1 << 30)
    found = Diagnosis(
        category=Category.STACK_OVERFLOW,
        confidence=Confidence.CERTAIN,
        evidence=Evidence(
            address=0x1FF8,
            instruction=Instruction(bytes="50", text="pushq %rax"),
            null_registers=["rbx"],
            mapping=guard,
            below=far,
            above=stack,
            stack=stack,
            sp_in_stack=False,
            exception="Odd",
            what="its text",
        ),
    )
    # THEN each fact is a line, but for what lies too far away
    assert {label: value for label, value in diagnosis_lines(found) if value is not None} == {
        "diagnosis": "stack-overflow, certain",
        "instruction": "pushq %rax (50)",
        "null in": "rbx",
        "mapping": "0x1000-0x2000 --- of no file",
        "above": "0x2000-0x9000 rw- of no file, 8 bytes off",
        "stack": "the stack pointer is not in it: 0x2000-0x9000 rw- of no file",
        "exception": "Odd: its text",
    }
    assert list(diagnosis_lines(None)) == []


def test_what_is_known_of_the_time_and_place() -> None:
    record = msgspec.structs.replace(
        SEGFAULT,
        age_s=3 * 86400 + 7300.0,
        ancestry=[Relative(pid=8, comm="sh"), Relative(pid=1, comm="init")],
        package=Package(name="shop", version="2.3", source="dpkg"),
        attributes={"RELEASE": "2.3"},
        host=HostFacts(name="web1", kernel="6.1", boot_id="b" * 36, cpu="fast"),
        logs=[LogLine(time=NOW, pid=8, message="bye\x1b[1m")],
    )
    assert dict(around_lines(record)) == {
        "age": "3 d 2 h",
        "package": "shop 2.3 (by dpkg)",
        "RELEASE": "2.3",
        "started by": "sh (8) < init (1)",
        "host": "web1, Linux 6.1",
        "CPU": "fast",
        "boot": "b" * 36,
        "runtime": None,
    }
    (line,) = log_lines(record)
    assert line.endswith(" 8: bye\\x1b[1m")


def test_what_is_not_known_is_not_shown() -> None:
    shown = {label: value for label, value in around_lines(SEGFAULT) if value is not None}
    assert shown == {}
    assert log_lines(SEGFAULT) == []
