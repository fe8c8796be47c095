"""Which runtime a program had, and which file is the report that Java made of its end."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.circumstances import ManagedRuntime
from collector.explain import managed
from collector.explain.files import Root
from collector.explain.managed import Managed, candidates, words_before
from collector.explain.run import REPORT, _with_report
from collector.explain.types import Explanation

TOP = 0x7FFF_0000_8F00
AUXV = struct.pack("<4Q", 31, TOP, 0, 0)
LIBRARY = "/opt/jdk/lib/server/libjvm.so"
TEXT = "#\n#  SIGSEGV (0xb) at pc=0x1, pid=77, tid=78\n#\n"


def stack(*words: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)


def test_the_words_of_a_command_line_and_environment_are_below_the_programs_name() -> None:
    # GIVEN a stack whose lowest pages the core has not
    data = stack(*("x" * 3000, "y" * 3000), "java", "-cp", "/srv", "PWD=/srv")
    start = TOP - len(data)
    missing = (start & -4096) + 4096

    def read(address: int, size: int) -> bytes:
        return b"" if address < missing else data[address - start : address - start + size]

    # THEN what is there is told, the first word only in part
    found = words_before(read, AUXV)
    assert found[-5:] == ["java", "-cp", "/srv", "PWD=/srv", ""]
    assert set(found[0]) <= {"x", "y"}
    assert words_before(lambda *_: b"", AUXV) == [""]
    assert words_before(read, b"") == [""]


def test_no_more_than_a_bounded_part_of_a_stack_is_read() -> None:
    assert sum(map(len, words_before(lambda _, size: b"x" * size, AUXV))) <= 36 << 10


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["java", "PWD=/srv"], ["/srv/hs_err_pid77.log"]),
        (["java"], []),
        (["java", "PWD=relative"], []),
        (
            ["java", "-XX:ErrorFile=/var/log/e%p-100%%.log", "PWD=/srv"],
            ["/var/log/e77-100%.log", "/srv/hs_err_pid77.log"],
        ),
        (
            ["java", "-XX:ErrorFile=log/%p", "PWD=/srv", "JAVA_TOOL_OPTIONS=-Xmx1g"],
            ["/srv/log/77", "/srv/hs_err_pid77.log"],
        ),
        (["java", "JDK_JAVA_OPTIONS=-Xmx1g -XX:ErrorFile=/e"], ["/e"]),
    ],
)
def test_where_a_report_may_be(words: list[str], paths: list[str]) -> None:
    assert list(candidates(words, 77)) == [*paths, "/tmp/hs_err_pid77.log"]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    (tmp_path / "srv").mkdir()
    (tmp_path / "opt/jdk/lib").mkdir(parents=True)
    (tmp_path / "opt/jdk/release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="17.0.15"\n')
    yield Root(fd)
    os.close(fd)


def java(root: Root, began: float = 0.0) -> Managed | None:
    return managed._java(LIBRARY, ["java", "PWD=/srv"], 77, root, began)


def test_a_report_is_found_beneath_the_process_own_root(root: Root, tmp_path: Path) -> None:
    (tmp_path / "srv/hs_err_pid77.log").write_text(TEXT + "\x1b[2J\n")
    assert java(root) == Managed(
        ManagedRuntime(name="java", version="17.0.15", report="/srv/hs_err_pid77.log"),
        TEXT + "?[2J\n",
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("none", "No such file"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("link", "No such file"),  # out of the root: it is followed within
        ("older", "it is older than the process"),
        ("other", "it is no report of this process"),
        ("text", "it is no report of this process"),
    ],
)
def test_what_is_no_report_is_said(root: Root, tmp_path: Path, what: str, why: str) -> None:
    file = tmp_path / "srv/hs_err_pid77.log"
    secret = tmp_path / "secret"
    secret.write_text(TEXT)
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "link":
        file.symlink_to(secret)
    elif what == "older":
        file.write_text(TEXT)
        os.utime(file, (1000, 1000))
    elif what == "other":
        file.write_text(TEXT.replace("pid=77", "pid=778"))
    elif what == "text":
        file.write_text("pid=77")
    found = managed._java(LIBRARY, ["-XX:ErrorFile=/srv/hs_err_pid77.log"], 77, root, 2000.0)
    assert found is not None
    assert (found.report, found.runtime.report) == (None, None)
    # the last place is /tmp, where there is none either
    with pytest.raises((OSError, ValueError), match=why):
        managed._report(root, "/srv/hs_err_pid77.log", 77, 2000.0)
    assert found.runtime.lost == "no hs_err file: /tmp/hs_err_pid77.log: No such file or directory"


def test_an_endless_report_is_cut(root: Root, tmp_path: Path) -> None:
    (tmp_path / "srv/hs_err_pid77.log").write_text(TEXT + "x" * (2 << 20))
    found = java(root)
    assert found is not None
    assert found.report is not None
    assert len(found.report) == 512 << 10


def test_a_report_is_kept_beside_the_record(tmp_path: Path) -> None:
    runtime = ManagedRuntime(name="java", report="/srv/hs_err_pid77.log")
    found = _with_report(Explanation(runtime=runtime, report=TEXT), tmp_path)
    assert (found.report, found.runtime.report_file) == (None, REPORT)  # type: ignore[union-attr]
    assert (tmp_path / REPORT).read_text() == TEXT
    # AND not where it may not be, or where the record is gone
    for folder, why in ((None, "may not be kept"), (tmp_path / "gone", "cannot be kept: No such")):
        found = _with_report(Explanation(runtime=runtime, report=TEXT), folder)
        assert found.report is None
        assert found.runtime is not None
        assert why in (found.runtime.lost or "")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("java", {"interpreted_frames": "only its runtime knows those of Java"}),
        ("node", {"interpreted_frames": "only its runtime knows those of JavaScript"}),
        ("go", {}),
    ],
)
def test_functions_that_nobody_knows_are_said(name: str, lost: dict[str, str]) -> None:
    assert managed.unknown_frames(Managed(ManagedRuntime(name=name))) == lost
    assert managed.unknown_frames(None) == {}
