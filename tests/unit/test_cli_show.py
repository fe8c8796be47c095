"""What `list`, `info`, `bt` and `rm` print: whole outputs, in a pipe unless said otherwise."""

from __future__ import annotations

import datetime
import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.cli import main, output, pager, render
from collector.cli.pager import command_of
from collector.cli.threads import with_record
from collector.explain.types import Explanation, ThreadFrames
from collector.introspect.last import last_end
from collector.model import Capture, Cause, Frame, Outcome, Record, SnapshotFacts
from collector.store.routine import RoutineEnd, Way
from collector.store.store import Store
from tests.unit.store_samples import KILLED, SEGFAULT, TIME, numbered

COMMAND = [sys.executable, "-m", "collector"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        yield store


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


OLD = TIME.replace(year=2020)  # so long ago that a date says more than an age


def on_terminal(columns: int, *words: str, **variables: str) -> str:
    """What the command prints on a terminal of this width, by default without a pager."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = ("COLUMNS", "NO_COLOR", "COREWARD_PAGER", *pager._LENT)
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"TERM": "xterm", "PAGER": "cat", **variables}
    subprocess.run([*COMMAND, *words], stdout=its, cwd=ROOT, env=environment, check=True)
    os.close(its)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # EIO: the other side is closed
        pass
    os.close(ours)
    return text.decode().replace("\r\n", "\n")


def test_list_shows_the_newest_and_says_how_many_there_are(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.batch():
        for number in range(102):
            store.put(numbered(number, comm="odd" if number % 2 else "even"))

    def pids(*words: str) -> list[int]:
        lines = shown(capsys, "list", *words)[1].splitlines()
        return [int(line.split()[6]) for line in lines[1:] if line.startswith("0")]

    # one hundred, unless somebody wants others
    assert pids() == [*range(102, 2, -1)]
    assert shown(capsys, "list")[1].splitlines()[-1] == (
        "the newest 100 of 102 deaths; --all shows all, -n N others"
    )
    assert pids("-n", "2") == [102, 101]
    assert pids("--all") == [*range(102, 0, -1)]
    assert len(pids("--comm", "odd")) == 51
    # a program gets all
    records = msgspec.json.decode(shown(capsys, "list", "--json")[1], type=list[Record])
    assert [record.pid for record in records] == [*range(102, 0, -1)]
    assert shown(capsys, "list", "--all", "-n", "3")[0] == 2


def test_list(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)

    # the hostile names are spelled out, and nothing is cut
    assert shown(capsys, "list") == (
        0,
        "ID        TIME                 CAUSE   SIGNAL   PROCESS                             PID"
        "  CAPTURED            SIZE  REASON\n"
        "01234567  2026-11-21 03:00:00  signal  SIGSEGV  /usr/bin/victim                     812"
        "  full, truncated  2.3 MiB"
        "  SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), thread `worker-3`\n"
        "fedcba98  2026-11-12 03:00:00  killed  SIGKILL  ev\\nil\\x1b[31m (/tmp/\\u202ex\\xff)"
        "  4000  record                 -"
        "  killed by SIGKILL from `ba\\x9bsh` (pid 812, uid 0)\n",
        "",
    )


def test_list_on_terminals_fits_their_width(store: Store) -> None:
    store.put(msgspec.structs.replace(SEGFAULT, time=OLD))

    assert on_terminal(140, "list") == (
        "\x1b[1mID        TIME                 CAUSE   SIGNAL   PROCESS          PID"
        "  CAPTURED            SIZE  REASON\x1b[0m\n"
        "\x1b[31m01234567\x1b[0m  2020-11-21 03:00:00  signal  SIGSEGV  /usr/bin/victim  812"
        "  full, truncated  2.3 MiB  SIGSEGV: wrote to address 0x0 in `inner` (v…\n"
    )
    assert on_terminal(100, "list") == (
        "\x1b[1mID        TIME                 PROCESS          PID  CAPTURED         REASON"
        "\x1b[0m\n"
        "\x1b[31m01234567\x1b[0m  2020-11-21 03:00:00  /usr/bin/victim  812  full, truncated"
        "  SIGSEGV: wrote to address 0x0…\n"
    )


def test_wide_characters_count_twice(store: Store) -> None:
    store.put(numbered(0, comm="日本語のプロセス名前です長い", reason="r" * 80, time=OLD))

    _heading, row = on_terminal(80, "list").splitlines()

    plain = row.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert plain == (
        "00000000  2020-11-21 03:00:00  日本語のプロセス名…    1  record    rrrrrrrrrrrr…"
    )


def test_a_terminal_shows_how_long_ago_it_was(store: Store) -> None:
    now = datetime.datetime.now(datetime.UTC)
    store.put(numbered(0, time=now - datetime.timedelta(hours=5, minutes=7)))
    assert "  5 h ago  " in on_terminal(120, "list").splitlines()[1]
    heading = on_terminal(120, "info").splitlines()[0]
    assert heading.endswith(" (5 h ago)") and f"{now:%Y-}" in heading


def test_ages_and_moments() -> None:
    screen = render.Screen()
    assert screen.when(TIME) == screen.moment(TIME) == "2026-11-21 03:00:00"  # in a pipe
    for seconds, when in (
        (0.5, "0 s ago"),
        (119, "1 min ago"),
        (7200, "2 h ago"),
        (30 * 86400, "30 d ago"),
        (31 * 86400, "2026-11-21 03:00:00"),
        (-5, "0 s ago"),  # it came while we looked
        (-3600, "2026-11-21 03:00:00"),  # a clock that was put back
    ):
        screen.now = TIME + datetime.timedelta(seconds=seconds)
        assert screen.when(TIME) == when
    screen.now = TIME + datetime.timedelta(days=40)
    assert screen.moment(TIME) == "2026-11-21 03:00:00 (40 d ago)"
    screen.now = TIME - datetime.timedelta(days=1)
    assert screen.moment(TIME) == "2026-11-21 03:00:00"


def test_a_backtrace_has_colours_where_they_are_understood(store: Store) -> None:
    store.put(SEGFAULT)
    assert (
        "\x1b[2m#0  0x000055d0c0de1234\x1b[0m in \x1b[1minner\x1b[0m+0x12 (victim.c:10)"
        in on_terminal(120, "bt")
    )
    for variables in ({"TERM": "dumb"}, {"NO_COLOR": "1"}):
        plain = on_terminal(120, "bt", **variables)
        assert "#0  0x000055d0c0de1234 in inner+0x12" in plain and "\x1b" not in plain


def test_long_output_goes_through_the_pager(store: Store, tmp_path: Path) -> None:
    # GIVEN a pager that shows the first line alone
    store.put(msgspec.structs.replace(SEGFAULT, time=OLD))
    pager = f"cat >{tmp_path}/paged; head -n 1 {tmp_path}/paged"
    # WHEN a verb prints on a terminal THEN the pager has it, in its width and colours
    seen = on_terminal(100, "list", COREWARD_PAGER=pager)
    paged = (tmp_path / "paged").read_text()
    assert seen == paged.splitlines(keepends=True)[0]
    assert paged == on_terminal(100, "list", "--no-pager")
    # AND one that has enough is no error, and JSON, and a terminal that can nothing, have none
    (tmp_path / "paged").unlink()
    assert on_terminal(100, "list", "--json", COREWARD_PAGER=pager).startswith("[\n")
    assert on_terminal(100, "bt", COREWARD_PAGER="true") == ""
    assert "in inner" in on_terminal(100, "bt", COREWARD_PAGER=pager, TERM="dumb")
    assert not (tmp_path / "paged").exists()


def test_which_pager_it_is() -> None:
    assert command_of({"PAGER": "cat"}) is command_of({"COREWARD_PAGER": ""}) is None
    assert command_of({"PAGER": "no-such-program -x"}) is command_of({"PAGER": "'"}) is None
    assert command_of({"PAGER": "cat -n", "COREWARD_PAGER": "head -n 5"}) == "head -n 5"
    # AND whoever may run this alone as root chooses no program
    for lent in ("SUDO_UID", "DOAS_USER", "PKEXEC_UID"):
        assert command_of({"PAGER": "sh", lent: "1000"}) in ("less", None)


@pytest.mark.parametrize("told", ["", "0", "-3", "x", "9" * 5000])
def test_a_width_that_makes_no_sense_is_none(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", told)
    assert 0 < output._columns() < 1_000_000


def test_list_json_is_the_records(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)

    status, out, err = shown(capsys, "list", "--json")

    assert (status, err) == (0, "")
    assert msgspec.json.decode(out, type=list[Record]) == [
        SEGFAULT,
        msgspec.structs.replace(KILLED, exe="/tmp/\u202ex\\xff"),
    ]
    # safe to print: no controls but the layout's newlines, no C1, no bidi override
    assert not set(out) & (set(map(chr, range(32))) - {"\n"} | {"\x9b", "\u202e"})


def test_list_of_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "list") == (0, f"no deaths on record in {store.path}\n", "")
    assert shown(capsys, "list", "--unit", "x") == (
        0,
        f"no deaths that match on record in {store.path}\n",
        "",
    )
    assert shown(capsys, "list", "--json") == (0, "[]\n", "")
    # and none, if none is asked for, is no statement
    assert shown(capsys, "list", "--limit", "0") == (0, "", "")


def test_list_filters(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)

    def ids(*words: str) -> list[str]:
        _, out, _ = shown(capsys, "list", "--json", *words)
        return [record.id[0] for record in msgspec.json.decode(out, type=list[Record])]

    assert {
        words: ids(*words.split())
        for words in (
            "--signal segv",
            "--signal 9",
            "--cause killed",
            "--comm vic*",
            "--exe /usr/bin/*",
            "--unit victim.service",
            "--since 2026-11-20",
            "--until 2026-11-21T03:00:00Z",
            "--limit 1",
        )
    } == {
        "--signal segv": ["0"],
        "--signal 9": ["f"],
        "--cause killed": ["f"],
        "--comm vic*": ["0"],
        "--exe /usr/bin/*": ["0"],
        "--unit victim.service": ["0"],
        "--since 2026-11-20": ["0"],
        "--until 2026-11-21T03:00:00Z": ["f"],
        "--limit 1": ["0"],
    }


def test_damage_is_told_and_the_rest_is_shown(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(SEGFAULT)
    store.put(numbered(1))
    file = store.path / "crashes" / SEGFAULT.id / "record.json"
    file.write_bytes(b"\xff")

    status, out, err = shown(capsys, "list", "--json")

    assert [record.start_ns for record in msgspec.json.decode(out, type=list[Record])] == [1]
    assert (status, err.split(": damaged: ")[0]) == (0, f"coreward: lost: {file}")
    status, out, err = shown(capsys, "info", SEGFAULT.id)
    assert (status, out, err.split(": damaged: ")[0]) == (1, "", f"coreward: {file}")


def test_ids_are_shown_as_long_as_they_need_to_be(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(numbered(0, id="00000000a0000000"))
    store.put(numbered(1, id="00000000a1000000"))

    _, out, _ = shown(capsys, "list")

    assert [line.split()[0] for line in out.splitlines()] == ["ID", "00000000a1", "00000000a0"]


def test_info(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    core = store.folder(SEGFAULT.id) / "core"
    core.touch()

    assert shown(capsys, "info") == (
        0,
        f"""\
Death 0123456789abcdef, 2026-11-21 03:00:00.123 UTC

What died
  process       victim, pid 812
  executable    /usr/bin/victim
  command       /usr/bin/victim -x 'a b'
  thread        worker-3, tid 815, of 4
  parent        pid 1
  user          uid 1000, gid 1000
  unit          victim.service
  cgroup        /system.slice/victim.service
  container     yes, where its pid was 7

Why
  reason        SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), thread `worker-3`
  cause         signal
  signal        SIGSEGV (11), SEGV_MAPERR, counted by the kernel as core dumped
  address       0x0 (write)
  last fault    SIGSEGV, SEGV_MAPERR, address 0x8; the process handled it; tid 815, ip 0x1, sp 0x2
  at            ip 0x55d0c0de1234, sp 0x7ffe00001000
  crash site    build-id abababababababababababababababababababab, offset 0x1234

Where
  #0  0x000055d0c0de1234 in inner+0x12 (victim.c:10) [/usr/bin/victim]
  #1  0x000055d0c0de1300 in middle (victim.c:20) (inlined)
  #2  0x0000000000007f00 in ?? [/lib/libc.so.6]

What was kept
  captured      full, truncated
  core          {core}, 2.3 MiB on disk, holds 64.0 MiB
  resident      64.0 MiB
  held          1.23 ms, release instant: there is room for its successor
  took          0.520 s
  rule          defaults

Lost
  core          store.min_free was reached
""",
        "",
    )


def test_info_of_a_killed_process(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(msgspec.structs.replace(KILLED, capture_wanted=Capture.FULL, late=True, oom=True))

    assert shown(capsys, "info", "fed")[1] == (
        """\
Death fedcba9876543210, 2026-11-12 03:00:00.123 UTC
It happened while the agent was down.

What died
  process       ev\\nil\\x1b[31m, pid 4000
  executable    /tmp/\\u202ex\\xff
  thread        tid 4000

Why
  reason        killed by SIGKILL from `ba\\x9bsh` (pid 812, uid 0)
  cause         killed, by the out-of-memory killer
  signal        SIGKILL (9)
  sender        ba\\x9bsh, pid 812, uid 0

What was kept
  captured      this record only
"""
    )


def test_info_of_a_snapshot(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    taken = SnapshotFacts(
        mode="full-stop",
        method="fork",
        why="the kernel copies all memory at once",
        consistent=False,
        pause_ms=3.909,
        worst_ms=0.52,
        unstopped=tuple(f"thread {tid}: it did not stop in time" for tid in range(10, 20)),
        not_of_instant=("0x1000-0x2000 /dev/zero: shared memory",),
    )
    store.put(
        Record(
            id="00112233aabbccdd",
            time=TIME,
            pid=812,
            tid=812,
            cause=Cause.SNAPSHOT,
            comm="victim",
            start_ns=5,
            reason="snapshot, full-stop by fork: stopped for 3.9 ms",
            capture_wanted=Capture.FULL,
            capture=Capture.FULL,
            outcome=Outcome.COMPLETE,
            snapshot=taken,
        )
    )

    assert shown(capsys, "info")[1] == (
        """\
Snapshot 00112233aabbccdd, 2026-11-21 03:00:00.123 UTC

Of what
  process       victim, pid 812
  thread        tid 812

Why
  reason        snapshot, full-stop by fork: stopped for 3.9 ms
  cause         snapshot

How it was taken
  mode          full-stop
  method        fork: the kernel copies all memory at once
  consistent    no: not of one instant
  stood for     3.91 ms
  worst thread  held 0.52 ms
"""
        + "".join(
            f"  ran on        thread {tid}: it did not stop in time\n" for tid in range(10, 18)
        )
        + """\
  ran on        and 2 more: coreward info --json
  other time    0x1000-0x2000 /dev/zero: shared memory

What was kept
  captured      full, complete
"""
    )


def test_info_json_is_the_record(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)

    _, out, _ = shown(capsys, "info", "--json", "0123")

    assert msgspec.json.decode(out, type=Record) == SEGFAULT


def test_bt(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)

    assert shown(capsys, "bt") == (
        0,
        """\
victim[812], thread `worker-3` 815: SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), \
thread `worker-3`
#0  0x000055d0c0de1234 in inner+0x12 (victim.c:10) [/usr/bin/victim]
#1  0x000055d0c0de1300 in middle (victim.c:20) (inlined)
#2  0x0000000000007f00 in ?? [/lib/libc.so.6]
""",
        "",
    )


def test_bt_of_what_has_no_symbols(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN frames without a name, of two objects, one of which has a build-id
    bare = Frame(pc=0x401234, module="/opt/a\n", module_offset=0x1234, build_id="00ff")
    other = Frame(pc=0x7F00, module="/opt/b", module_offset=0x700, scanned=True)
    store.put(msgspec.structs.replace(SEGFAULT, frames=[bare, other, bare]))
    # THEN there is what a symbol is looked up by elsewhere
    assert shown(capsys, "bt")[1].splitlines()[1:] == [
        "#0  0x0000000000401234 in ?? [/opt/a\\n+0x1234]",
        "#1  0x0000000000007f00 in ?? [/opt/b+0x700] (found on the stack)",
        "#2  0x0000000000401234 in ?? [/opt/a\\n+0x1234]",
        "/opt/a\\n: build-id 00ff",
    ]
    assert "  /opt/a\\n: build-id 00ff\n" in shown(capsys, "info")[1]


def test_bt_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)

    _, out, _ = shown(capsys, "bt", "--json")

    assert msgspec.json.decode(out) == {
        "id": SEGFAULT.id,
        "pid": 812,
        "tid": 815,
        "thread_name": "worker-3",
        "frames": msgspec.to_builtins(SEGFAULT.frames),
    }


def test_bt_says_why_there_is_none(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(msgspec.structs.replace(KILLED, lost={"frames": "no core\n, no stack"}))

    assert shown(capsys, "bt", "latest") == (
        1,
        "",
        f"coreward: record {KILLED.id} has no backtrace: no core\\n, no stack; "
        f"`coreward info {KILLED.id}` tells what is known\n",
    )


@pytest.mark.parametrize(("verb", "part"), [("bt", "backtrace"), ("core", "core")])
def test_what_is_still_being_worked_on_is_said_to_be(
    store: Store, capsys: pytest.CaptureFixture[str], verb: str, part: str
) -> None:
    store.put(msgspec.structs.replace(KILLED, lost={}, reason=None))

    assert shown(capsys, verb, "latest") == (
        1,
        "",
        f"coreward: record {KILLED.id} has no {part}: the agent is still at work on it; "
        "try again in a moment\n",
    )


def test_bt_of_all_threads(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN what the explainer says of a core: one thread lacks its frames
    sleeper = ThreadFrames(tid=812, frames=[Frame(pc=16, function="pause\x1b[m")])
    died = ThreadFrames(tid=815, frames=[], lost="its stack is not in the core")
    said = Explanation(threads=[sleeper, died], lost={"modules": "/usr/bin/victim is gone"})
    asked: list[Path] = []

    def explain_core(core: Path, **_: object) -> Explanation:
        asked.append(core)
        return said

    monkeypatch.setattr("collector.explain.run.explain_core", explain_core)
    record = msgspec.structs.replace(SEGFAULT, ns_pid=None, outcome=Outcome.COMPLETE)
    store.put(record)
    core = store.folder(SEGFAULT.id) / "core"
    core.touch()

    # THEN the thread that died comes first, with what the record knows of it
    assert shown(capsys, "bt", "--all") == (
        0,
        """\
Thread 815 `worker-3`, which died:
#0  0x000055d0c0de1234 in inner+0x12 (victim.c:10) [/usr/bin/victim]
#1  0x000055d0c0de1300 in middle (victim.c:20) (inlined)
#2  0x0000000000007f00 in ?? [/lib/libc.so.6]
(its stack is not in the core)

Thread 812:
#0  0x0000000000000010 in pause\\x1b[m
""",
        "coreward: lost: modules: /usr/bin/victim is gone\n",
    )
    assert msgspec.json.decode(shown(capsys, "bt", "--all", "--json")[1]) == {
        "id": SEGFAULT.id,
        "pid": 812,
        "threads": msgspec.to_builtins([with_record([died], record)[0], sleeper]),
        "goroutines": None,
        "lost": {"modules": "/usr/bin/victim is gone"},
    }
    assert asked == [core, core]


def test_rm(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)

    # an unknown id: nothing goes
    assert shown(capsys, "rm", "fed", "abc") == (
        1,
        "",
        "coreward: no record begins with 'abc'; `coreward list` shows all\n",
    )
    assert store.count() == 2

    status, out, err = shown(capsys, "rm", "fed", KILLED.id)
    freed = out.rsplit("; ", 1)[-1]
    assert (status, out, err) == (
        0,
        f"removed {KILLED.id}: ev\\nil\\x1b[31m, pid 4000, 2026-11-12 03:00:00; {freed}",
        "",
    )
    assert store.list() == [SEGFAULT]


def test_rm_by_age_and_all(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for number, days in enumerate((1, 6, 8, 30)):
        store.put(numbered(number, time=now - datetime.timedelta(days=days)))

    _, out, _ = shown(capsys, "rm", "--older-than", "7d", "--json")
    assert [(one["id"], one["pid"]) for one in msgspec.json.decode(out)] == [
        (numbered(2).id, 3),
        (numbered(3).id, 4),
    ]
    assert shown(capsys, "rm", "--all")[0] == 0
    assert shown(capsys, "rm", "--all") == (0, "nothing to remove\n", "")
    assert store.ids() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rm"], "rm: give either IDs, or --all, or --older-than AGE"),
        (["rm", "a", "--all"], "rm: give either IDs, or --all, or --older-than AGE"),
        (["rm", "--older-than", "x"],
         "--older-than: \"x\" is not understood; expected a duration such as 30s, 5m, 1h, 1d or "
         "2w"),
        (["list", "--since", "soon"], "--since: \"soon\" is not a time: give 2026-11-21, "
         "2026-11-21T10:00, an age such as 2h or 7d, today or yesterday"),
        (["list", "--signal", "SIGNONE"],
         "--signal: \"SIGNONE\" is not a signal such as SIGSEGV, SEGV or 11"),
        (["list", "--limit", "-1"], "--limit -1: must not be negative"),
    ],
)  # fmt: skip
def test_wrong_usage(
    store: Store, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert shown(capsys, *words) == (2, "", f"coreward: {says}\n")


def test_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none"
    assert shown(capsys, "list", "--store", str(path)) == (
        1,
        "",
        f"coreward: {path}: no store there: nothing was ever recorded, or --store names another; "
        "`coreward doctor` says whether deaths are caught here\n",
    )


def test_age_reaches_back_from_now(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(numbered(0, time=TIME.replace(year=2001)))

    assert shown(capsys, "list", "--since", "2h", "--json")[1] == "[]\n"
    assert shown(capsys, "list", "--since", "999999w", "--json")[1] != "[]\n"
    assert shown(capsys, "list", "--until", "yesterday", "--json")[1] != "[]\n"


def test_keep_and_undo(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)
    assert shown(capsys, "keep", "0123", "fedc") == (
        0,
        "0123456789abcdef is kept\nfedcba9876543210 is kept\n",
        "",
    )
    assert shown(capsys, "keep", "fedc", "--undo")[1] == "fedcba9876543210 is kept no more\n"
    kept = msgspec.json.decode(shown(capsys, "list", "--kept", "--json")[1], type=list[Record])
    assert [record.id for record in kept] == [SEGFAULT.id]
    # one that is not there: nothing is marked
    assert shown(capsys, "keep", "fedc", "beef") == (
        1,
        "",
        "coreward: no record begins with 'beef'; `coreward list` shows all\n",
    )
    assert not store.is_kept(KILLED.id)


def test_repair(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store.put(SEGFAULT)
    store.put(KILLED)
    file = store.path / "crashes" / KILLED.id / "record.json"
    file.write_text("{")
    words = ("doctor", "--repair", "--run-dir", str(tmp_path / "run"))
    assert shown(capsys, *words) == (
        1,
        "1 records are in the index\n"
        f"damaged: {file}: damaged: Input data was truncated\n"
        "`coreward rm ID` removes what is damaged; nothing was removed\n",
        "",
    )
    store.remove(KILLED.id)
    assert shown(capsys, *words) == (0, "1 records are in the index\n", "")
    assert '"replaced": false' in shown(capsys, *words, "--json")[1]


@pytest.mark.parametrize(
    ("words", "next_step"),
    [
        (["info", "latest"], "`coreward doctor` says whether deaths are caught here"),
        (["info", "abc"], "`coreward list` shows all"),
        (["signature", "latest"], "`coreward list` shows deaths"),
        (["signature", "abc"], "`coreward signatures` shows all"),
        (["note", "abc", "text"], "`coreward signatures` shows all"),
        (["last", "--unit", "x"], "`coreward list --unit 'GLOB'` and `--routine` show those of"),
        (["completion"], "give a shell: bash, zsh, fish"),
    ],
)
def test_a_failure_says_what_to_do_next(
    store: Store, capsys: pytest.CaptureFixture[str], words: list[str], next_step: str
) -> None:
    status, out, err = shown(capsys, *words)
    assert status != 0 and out == "" and next_step in err and err.count("\n") == 1


def test_failures_with_records_say_what_to_do_next(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN two records whose ids begin alike, and a third one that is damaged
    for id in ("aa00000000000000", "aa10000000000000", "bb00000000000000"):
        store.put(msgspec.structs.replace(KILLED, id=id))
    (store.path / "crashes" / "bb00000000000000" / "record.json").write_text("{")
    # THEN each verb says how to go on
    removes = "; `coreward rm bb00000000000000` removes it, and its core\n"
    for words, ends in (
        (["info", "aa"], "; give more digits\n"),
        (["info", "bb"], removes),
        (["list"], removes),
        (["bt", "aa0"], "; `coreward info aa00000000000000` tells what is known\n"),
        (["core", "aa0"], "; `coreward info aa00000000000000` tells what is known\n"),
        (["calls", "aa0"], "; `coreward info aa00000000000000` tells what is known\n"),
    ):
        assert shown(capsys, *words)[2].endswith(ends), words
    # AND that does what it says
    assert shown(capsys, "rm", "bb00000000000000")[0] == 0
    assert shown(capsys, "list")[2] == ""


def test_routine_ends(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one = RoutineEnd(
        time=TIME,
        way=Way.PARENT,
        pid=812,
        comm="vic\ntim",
        signal=9,
        signal_name="SIGKILL",
        by_pid=50,
        by_comm="pytest",
    )
    store.put(SEGFAULT)
    assert shown(capsys, "list", "--routine")[1] == f"no routine ends on record in {store.path}\n"
    store.routine.add(one)
    store.routine.add(
        msgspec.structs.replace(one, way=Way.MANAGER, unit="a.service", exe="/usr/bin/a", pid=3)
    )

    assert shown(capsys, "list", "--routine") == (
        0,
        "TIME                 SIGNAL   PROCESS     PID  ENDED BY                            UNIT\n"
        "2026-11-21 03:00:00  SIGKILL  /usr/bin/a    3  systemd, which was told to stop it  "
        "a.service\n"
        "2026-11-21 03:00:00  SIGKILL  vic\\ntim    812  its parent pytest (50)              -\n",
        "",
    )
    assert shown(capsys, "list")[1].splitlines()[-1] == (
        "2 routine ends beside them; --routine shows the last ones"
    )
    assert shown(capsys, "list", "--unit", "a*")[1].splitlines()[-1] == (
        "1 routine end beside them; --routine shows the last ones"
    )
    assert "routine" not in shown(capsys, "list", "--cause", "signal")[1]
    found = msgspec.json.decode(
        shown(capsys, "list", "--routine", "--json", "-n", "1")[1], type=list[RoutineEnd]
    )
    assert [(end.pid, end.way) for end in found] == [(3, Way.MANAGER)]
    assert shown(capsys, "list", "--routine", "--kept")[0] == 2


def test_last(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("last", "--unit", "victim.service")
    assert shown(capsys, *words) == (
        1,
        "",
        f"coreward: no end of a process of victim.service is on record in {store.path}; "
        "`coreward list --unit 'GLOB'` and `--routine` show those of others\n",
    )
    # GIVEN a death of the unit, one of another, an open record, a snapshot
    store.put(SEGFAULT)
    hour = datetime.timedelta(hours=1)
    store.put(numbered(1, unit="victims.service", reason="no", time=TIME + hour))
    store.put(numbered(2, unit="victim.service", time=TIME + hour))
    shot = numbered(3, unit="victim.service", reason="no", time=TIME + hour)
    store.put(msgspec.structs.replace(shot, cause=Cause.SNAPSHOT))
    assert shown(capsys, *words) == (
        0,
        "2026-11-21 03:00:00 victim[812]: SIGSEGV: wrote to address 0x0 in `inner` (victim.c:10), "
        "thread `worker-3`; `coreward info 0123456789abcdef` says more\n",
        "",
    )
    found = msgspec.json.decode(shown(capsys, *words, "--json")[1])
    assert (found["id"], found["signal_name"], found["routine"]) == (SEGFAULT.id, "SIGSEGV", False)
    assert found["signature"] == (SEGFAULT.signature and SEGFAULT.signature.text)
    # AND a program is told the same
    told = last_end("victim.service", store.path)
    assert msgspec.json.decode(msgspec.json.encode(told)) == found
    assert last_end("none.service", store.path) is None
    # WHEN its successor was stopped
    store.routine.add(
        RoutineEnd(
            time=TIME + hour,
            way=Way.MANAGER,
            pid=9,
            comm="victim",
            unit="victim.service",
            signal=15,
            signal_name="SIGTERM",
        )
    )
    assert shown(capsys, *words)[1] == (
        "2026-11-21 04:00:00 victim[9]: ended by SIGTERM: systemd, which was told to stop it\n"
    )
