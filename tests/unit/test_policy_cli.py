"""`coreward policy check` and `coreward policy test`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from collector.cli import main

RULES = """\
rules:
  - name: db
    match: {exe: "/usr/lib/db/*", signal: [SEGV, ABRT]}
    memory: {max: 2GiB, include: [file], exclude: [shm, "/dev/x*"], coredump_filter: 0x33}
    honour_rlimit: true
  - {name: ended, match: {cause: exit, unit: web.service}, capture: record}
  - {name: pods, match: {container: true}, capture: stacks, compress: none}
  - {name: mine, match: {user: root}, limit: none, memory: {dontdump: true}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text("ruls: []\nhold: {takeover: 3}\n")
    return str(path)


def test_check_says_that_a_file_is_right(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.yaml"
    one.write_text("rules: [{name: a, match: {comm: a}}]")
    assert main(["policy", "check", file]) == 0
    assert main(["policy", "check", str(one)]) == 0
    assert main(["policy", "check", file, "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [f"{file}: ok: 4 rules", f"{one}: ok: 1 rule"]
    assert json.loads("\n".join(out[2:])) == {
        "file": file,
        "ok": True,
        "rules": 4,
        "watch": 0,
        "arm": 0,
    }


def test_check_counts_watch_rules_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "watch.yaml").write_text("watch: [{name: a, match: {comm: a}}]")
    assert main(["policy", "check", str(tmp_path / "watch.yaml")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/watch.yaml: ok: 0 rules, 1 of `watch`\n"
    (tmp_path / "arm.yaml").write_text("arm: {rules: [{name: a, match: {comm: a}}]}")
    assert main(["policy", "check", str(tmp_path / "arm.yaml")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/arm.yaml: ok: 0 rules, 1 of `arm`\n"


def test_a_test_says_whether_it_would_be_armed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("arm: {rules: [{name: db, match: {unit: db.service}, on: [oom, exit]}]}")
    assert main(["policy", "test", str(file), "--unit", "db.service"]) == 0
    assert capsys.readouterr().out.endswith(
        "while it lives\n  armed        db: full on oom, exit\n"
    )
    assert main(["policy", "test", str(file), "--unit", "x.service", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arm"] is None


@pytest.mark.parametrize(("number", "said"), [("KILL", True), ("SEGV", False)])
def test_test_says_what_dumps_no_core(
    file: str, capsys: pytest.CaptureFixture[str], number: str, said: bool
) -> None:
    assert main(["policy", "test", file, "--signal", number]) == 0
    line = "  but          SIGKILL dumps no core: a record at most\n"
    assert (line in capsys.readouterr().out) is said


def test_check_says_everything_that_is_wrong(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", bad]) == 2
    assert capsys.readouterr() == (
        "",
        f'coreward: {bad}:1: ruls: unknown key "ruls"; did you mean "rules"?\n'
        f'{bad}:2: hold.takeover: expected true, false, keep or yield, not "3"\n',
    )
    assert main(["policy", "check", bad, "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "file": bad,
        "ok": False,
        "problems": [
            {
                "line": 1,
                "key": "ruls",
                "problem": 'unknown key "ruls"; did you mean "rules"?',
            },
            {
                "line": 2,
                "key": "hold.takeover",
                "problem": 'expected true, false, keep or yield, not "3"',
            },
        ],
    }


def test_test_says_what_would_happen_and_why(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--exe", "/usr/lib/db/15/db", "--signal", "SEGV", "--comm", "db\x1b"]
    assert main(["policy", "test", file, *arguments]) == 0
    assert (
        capsys.readouterr().out
        == """\
facts
  cause        signal
  exe          /usr/lib/db/15/db
  comm         "db\\x1b"
  signal       SIGSEGV
  not known    cgroup, unit, uid, container
rules
  + db: signal is SIGSEGV or SIGABRT and exe is /usr/lib/db/*
what would happen
  capture      full
  memory       at most 2GiB; with file; without shm, /dev/x*; coredump_filter 0x33
  release      instant
  compress     zstd, level 1, workers 1
  limit        5 per 1h, then stacks: 20 per 1h, then record
  RLIMIT_CORE  bounds the core
"""
    )


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (
            ["--cause", "exit", "--unit", "db.service"],
            """\
  - db: does not name cause exit
  - ended: unit is not web.service
  - pods: does not name cause exit
  - mine: does not name cause exit
  + defaults: exits are recorded only for services named by a rule
what would happen
  capture      none
""",
        ),
        (
            ["--cgroup", "/system.slice/web.service", "--cause", "exit"],
            """\
  - db: does not name cause exit
  + ended: cause is exit and unit is web.service
what would happen
  capture      record
""",
        ),
        (
            ["--cgroup", "/kubepods/pod1/a"],
            """\
  - db: signal is not known
  - ended: cause is not exit
  + pods: container is true
what would happen
  capture      stacks
  release      instant
  compress     none
  limit        20 per 1h, then record
""",
        ),
        (
            ["--user", "root", "--no-container", "--cgroup", "/kubepods/pod1/a"],
            """\
  - db: signal is not known
  - ended: cause is not exit
  - pods: container is not true
  + mine: uid is 0
what would happen
  capture      full
  memory       what the kernel would dump; MADV_DONTDUMP too
  release      instant
  compress     zstd, level 1, workers 1
  limit        none
""",
        ),
    ],
)
def test_test_tells_why_earlier_rules_were_passed_over(
    file: str, arguments: list[str], rules: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "test", file, *arguments]) == 0
    assert capsys.readouterr().out.split("rules\n", 1)[1] == rules


def test_test_takes_the_facts_of_a_live_process_and_arguments_over_them(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN this process, WHEN it is asked about under another user's id
    arguments = ["--pid", str(os.getpid()), "--uid", "123456", "--signal", "6", "--container"]
    assert main(["policy", "test", file, *arguments, "--json"]) == 0

    # THEN what was not given is its own
    answer = json.loads(capsys.readouterr().out)
    own = {
        "exe": os.path.realpath("/proc/self/exe"),
        "comm": Path("/proc/self/comm").read_text().rstrip("\n"),
        "uid": 123456,
        "signal": 6,
        "cause": "signal",
        "container": True,
    }
    assert {key: answer["facts"][key] for key in own} == own
    assert answer["decision"]["rule"] == "pods"
    assert answer["decision"]["why"] == "container is true"
    assert answer["trials"] == [
        {"rule": "db", "matched": False, "why": "exe is not /usr/lib/db/*"},
        {"rule": "ended", "matched": False, "why": "cause is not exit"},
        {"rule": "pods", "matched": True, "why": "container is true"},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--signal", "SEGF"], '--signal: "SEGF" is not a signal; did you mean "SEGV"?'),
        (["--user", "no-such"], '--user: no user "no-such" on this host'),
        (["--pid", "4194305"], "--pid 4194305: there is no such process"),
        (
            ["--cause", "exit", "--signal", "11"],
            "--signal: an exit has no signal; leave it out, or choose another --cause",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    file: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "test", file, *arguments]) == 2
    assert capsys.readouterr() == ("", f"coreward: {message}\n")
