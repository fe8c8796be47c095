"""Tracing: every call, signal and end of a process and its descendants, or how many are missing."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from collector.trace import (
    RECORD,
    CallEvent,
    ExitEvent,
    ForkEvent,
    KeptEvent,
    Rule,
    Tracer,
    WaitEvent,
    call_name,
    parse,
)
from collector.trace.layout import ARMED_BEFORE, ARMED_NOW
from tests.system.straces import by_thread, compare
from tests.system.tracing import events_of, trace, tracing, wait_for
from tests.system.victims import build, running, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]

PIPELINE = (
    "cat /etc/passwd /etc/group | grep -v nologin | sort -t: -k3 -n | sed s/root/ROOT/ | wc -lc\n"
    "exit 3\n"
)


def test_a_pipeline_is_seen_as_strace_sees_it(tmp_path: Path) -> None:
    # GIVEN a shell that runs five commands, under strace, which is traced itself
    script, theirs, ours = tmp_path / "script", tmp_path / "theirs", tmp_path / "ours"
    script.write_text(PIPELINE)
    strace = ["strace", "-f", "-s", "200", "-o", str(theirs), "sh", str(script)]
    done = trace("--strings", "200", "-o", str(ours), "--", *strace)
    assert done.returncode == 3, done.stderr
    expected = by_thread(theirs.read_text())
    lines = [line for line in ours.read_text().splitlines() if line.startswith("[pid")]
    found = by_thread("\n".join(lines))
    assert len(expected) == 6
    # THEN each thread did the same in the same order: calls, arguments, results, signals
    compared = compare(found, expected)
    assert compared > 600


@pytest.mark.parametrize("threads", [1, 4])
def test_in_a_storm_every_lost_call_is_counted(threads: int) -> None:
    # GIVEN more calls than the ring has room for, or anybody could read
    calls = 100_000
    rule = Rule(wanted=parse("getppid"))
    with Tracer(rule, ring=64 << 10) as tracer:
        words = (build("traced"), "storm", str(calls), str(threads), "now")
        events, status = events_of(tracer, *words)
        losses = tracer.losses()
    # THEN what was seen and what was lost is all
    assert status == 3
    seen: dict[int, int] = {}
    for event in events:
        if isinstance(event, CallEvent):
            seen[event.tid] = seen.get(event.tid, 0) + 1
    ends = {event.tid: event for event in events if isinstance(event, ExitEvent)}
    stormy = {tid: end for tid, end in ends.items() if end.made}
    assert len(ends) == threads + 1
    assert len(stormy) == threads
    for tid, end in stormy.items():
        assert end.made == calls
        assert seen.get(tid, 0) + end.lost_calls == calls
    assert losses.calls == sum(end.lost_calls for end in ends.values()) > 0
    # AND the stream says so where it was: the last event of a thread has what was lost before it
    assert sum(event.lost for event in events) == losses.events == losses.calls
    assert not losses.untraced
    assert not losses.unnamed


def test_losses_are_shown_where_they_were() -> None:
    done = trace(
        *("--buffer", "64KiB", "-e", "trace=getppid", "--"),
        *(str(build("traced")), "storm", "50000", "1", "now"),
    )
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    shown = sum("getppid() = " in line for line in lines)
    lost = [
        re.search(r"--- (\d+) events of this thread were lost here ---", line) for line in lines
    ]
    assert shown + sum(int(match[1]) for match in lost if match) == 50_000
    # AND at the end in one line
    assert re.fullmatch(r"coreward: lost: (\d+) events, \1 of them system calls", lines[-1])


def test_who_waits_for_the_reader_loses_nothing() -> None:
    # GIVEN the same storm, with processes that wait
    calls = 5_000
    with Tracer(Rule(wanted=parse("getppid"), wait=True), ring=64 << 10) as tracer:
        events, status = events_of(tracer, build("traced"), "storm", str(calls), "4", "now")
        losses = tracer.losses()
    # THEN every call is there, and the process has waited
    assert status == 3
    assert losses.events == losses.calls == 0
    assert sum(isinstance(event, CallEvent) for event in events) == 4 * calls
    assert any(isinstance(event, WaitEvent) for event in events)


def test_whoever_waits_for_a_reader_that_is_killed_goes_on(tmp_path: Path) -> None:
    # GIVEN a reader whose own output nobody reads, so that it reads no more
    words = ["--wait", "--buffer", "64KiB", "-e", "trace=getppid"]
    with (
        running("traced", "storm", "20000", "1", cwd=tmp_path) as victim,
        tracing(*words, str(victim.pid)) as reader,
    ):
        wait_for(reader, "attached")
        victim.go()
        stat = Path(f"/proc/{victim.pid}/stat")
        wait_until(lambda: b") T " in stat.read_bytes(), "the process waits")
        # WHEN it is killed
        reader.kill()
        # THEN the process goes on, and ends
        assert victim.wait() == 3


@pytest.mark.parametrize("count", [10_000])
def test_all_threads_of_a_large_process(tmp_path: Path, count: int) -> None:
    with running("traced", "threads", str(count), cwd=tmp_path) as victim, Tracer() as tracer:
        assert tracer.attach(victim.pid) == count + 1
        assert len(tracer.present(victim.pid)) == count + 1
        victim.go()
        ends = [event for event in tracer.events() if isinstance(event, ExitEvent)]
        # THEN each end is seen, and one is the last
        assert len({event.tid for event in ends}) == count + 1
        assert sum(event.last for event in ends) >= 1
        assert tracer.losses().events == 0


def test_threads_that_are_made_while_it_is_attached_are_not_missed(tmp_path: Path) -> None:
    # GIVEN a process whose threads do nothing but make others
    seen = 0
    with running("traced", "churn", cwd=tmp_path) as victim:
        for _ in range(20):
            with Tracer(Rule(wanted=parse("none"))) as tracer:
                tracer.attach(victim.pid)
                # THEN who lives is traced already, also who was born meanwhile
                tasks = Path(f"/proc/{victim.pid}/task")
                alive = [int(path.name) for path in tasks.iterdir()]
                again = [how for tid in alive for _, how in tracer._armed("arm", tid, single=True)]
                assert ARMED_NOW not in again
                seen += again.count(ARMED_BEFORE)
        assert seen
        victim.go()
        assert victim.wait() == 3


def test_children_of_children_are_seen_from_their_first_instruction() -> None:
    generations = 200
    with Tracer(Rule()) as tracer:
        events, status = events_of(tracer, build("traced"), "forks", str(generations), "now")
    assert status == 3
    children = {e.child_tid for e in events if isinstance(e, ForkEvent)}
    ends = {event.tid for event in events if isinstance(event, ExitEvent)}
    assert len(children) == generations
    assert children < ends
    for child in children:  # glibc's fork: the first that a child does
        first = next(e for e in events if isinstance(e, CallEvent) and e.tid == child)
        assert call_name(first.call) == "set_robust_list"


def test_an_execve_of_another_thread_than_the_first() -> None:
    done = trace("--strings", "64", "--", str(build("traced")), "exec", "now")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    superseded = next(line for line in lines if "superseded" in line)
    match = re.fullmatch(
        r"\[pid +(\d+)\] \+\+\+ superseded by execve in pid (\d+) \+\+\+", superseded
    )
    assert match is not None
    assert match[1] != match[2]
    # THEN the new program goes on under the first one's number, and its end is seen
    after = lines[lines.index(superseded) + 1 :]
    assert re.search(r'execve\("/bin/true", \["true", "of another thread"\], 0x\w+\) = 0', after[0])
    assert {line.split("]")[0] for line in after} == {superseded.split("]")[0]}
    assert after[-1].endswith("+++ exited with 0 +++")


@pytest.mark.alone  # a core is dumped
def test_code_of_32_bits(tmp_path: Path) -> None:
    with running("bits32", cwd=tmp_path) as victim, tracing(str(victim.pid)) as reader:
        wait_for(reader, "attached")
        victim.go()
        victim.wait()
        _, said = reader.communicate()
    # THEN its numbers are its own: 3 is read(2) there, and its fault is seen
    assert re.search(r"^read\(0, 0x\w+, 1\) = 1", said, re.MULTILINE)
    assert "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10} ---" in said
    assert "+++ killed by SIGSEGV" in said


def test_names_of_a_hostile_process_stay_in_their_line() -> None:
    words = (str(build("traced")), "text", "5000", "now")
    done = trace("--strings", "100", "-e", "trace=write,openat", "--", *words)
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    name = r"/\33]0;title\7\n+++ exited with 0 +++\n"
    assert any(f'"{name}", O_RDONLY) = -1 ENOENT' in line for line in lines)
    assert "+++ exited with 0 +++" not in lines
    # AND no more of a buffer is copied than was asked for
    expected = f'"{"x" * 100}"..., 5000) = 5000'
    assert sum(expected in line for line in lines) == 1


def test_without_strings_no_memory_is_copied() -> None:
    words = (str(build("traced")), "text", "5000", "now")
    with Tracer(Rule()) as tracer:
        events, _ = events_of(tracer, *words)
    assert [e for e in events if isinstance(e, CallEvent) and e.call.texts] == []


def test_a_killed_process(tmp_path: Path) -> None:
    with running("traced", "sleep", cwd=tmp_path) as victim, tracing(str(victim.pid)) as reader:
        wait_for(reader, "attached")
        victim.go()
        # THEN a call that does not return is shown, though nothing happens
        wait_for(reader, "read(0, 0x", "<unfinished ...>")
        os.kill(victim.pid, signal.SIGTERM)
        assert victim.wait() == -signal.SIGTERM
        _, said = reader.communicate()
    # AND who killed it
    own = Path("/proc/self/comm").read_text().strip()
    sender = f'si_pid={os.getpid()}, si_uid=0}} --- /* from pid {os.getpid()}, "{own}" */'
    assert f"--- SIGTERM {{si_signo=SIGTERM, si_code=SI_USER, {sender}" in said
    assert said.splitlines()[-1] == "+++ killed by SIGTERM +++"
    assert reader.returncode == 0


def test_a_command_gets_the_interrupt_and_its_status_is_passed_on(tmp_path: Path) -> None:
    with tracing("--", "sleep", "1000") as reader:
        wait_for(reader, "<unfinished ...>")
        reader.send_signal(signal.SIGINT)
        _, said = reader.communicate()
    assert reader.returncode == 128 + signal.SIGINT
    assert said.splitlines()[-1] == "+++ killed by SIGINT +++"


def test_an_interrupt_ends_the_trace_of_a_process_that_goes_on(tmp_path: Path) -> None:
    with running("traced", "sleep", cwd=tmp_path) as victim, tracing(str(victim.pid)) as reader:
        wait_for(reader, "attached")
        reader.send_signal(signal.SIGINT)
        _, said = reader.communicate()
        assert reader.returncode == 128 + signal.SIGINT
        assert "Traceback" not in said
        assert victim.process.poll() is None


def test_json_has_an_object_for_each_event(tmp_path: Path) -> None:
    file = tmp_path / "events"
    words = (str(build("traced")), "text", "10", "now")
    done = trace("--json", "--strings", "16", "-o", str(file), "--", *words)
    assert done.returncode == 3
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert events[0]["type"] == "exec"
    (written,) = [
        e for e in events if e["type"] == "call" and e["call"]["args"][2] == 10
        and e["call"]["name"] == "write"
    ]  # fmt: skip
    assert written["call"]["result"] == 10
    assert written["call"]["texts"]["1"] == {"data": "x" * 10, "cut": False, "late": False}
    assert written["text"].endswith(', "xxxxxxxxxx", 10) = 10')
    assert written["call"]["enter_ns"] < written["call"]["exit_ns"] == written["time_ns"]
    assert events[-1].items() >= {"type": "exit", "status": 0x300, "last": True}.items()


def test_a_summary() -> None:
    done = trace("-c", "--", str(build("traced")), "storm", "1000", "0", "now")
    assert done.returncode == 3
    (row,) = [line.split() for line in done.stderr.splitlines() if line.endswith(" getppid")]
    assert row[3] == "1000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "trace PID..., or --unit NAME, or -- COMMAND"),
        (["1", "--", "true"], "one of them"),
        (["--strings", "5000", "1"], "strings: 5000: from 0 to 1024 bytes"),
        (["--buffer", "100KiB", "1"], "a ring of 102400 bytes: a power of two"),
        (["-e", "trace=nosuchcall", "1"], "no system call is named 'nosuchcall'"),
        (["--", "/no/such/command"], "/no/such/command: no such command"),
        (["--unit", "no-such-unit"], "--unit no-such-unit: there is no control group"),
        (["-o", "/no/such/folder/file", "1"], "-o /no/such/folder/file: No such file"),
        (["999999999"], "no process 999999999 has threads to trace"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(words: list[str], message: str) -> None:
    done = trace(*words)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_unit_is_its_control_group(tmp_path: Path) -> None:
    root = Path("/sys/fs/cgroup/unified")
    group = (root if root.is_dir() else Path("/sys/fs/cgroup")) / f"traced-{os.getpid()}.service"
    group.mkdir()
    try:
        with (
            running("traced", "text", "3", cwd=tmp_path, cgroup=group) as victim,
            tracing("--strings", "9", "--unit", group.name) as reader,
        ):
            wait_for(reader, "attached")
            victim.go()
            assert victim.wait() == 3
            wait_for(reader, 'write(3, "xxx", 3) = 3')
            wait_for(reader, "+++ exited with 3 +++")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def test_what_a_thread_keeps_of_its_calls(tmp_path: Path) -> None:
    # GIVEN a process of which each thread keeps its last 8 calls
    rule = Rule(mode=RECORD, calls=8, strings=16, tell_failed=True)
    with running("traced", "sleep", cwd=tmp_path) as victim, Tracer(rule) as tracer:
        tracer.attach(victim.pid)
        victim.go()
        state = Path(f"/proc/{victim.pid}/syscall")
        # WHEN it waits in its second read
        wait_until(lambda: bool(tracer.kept(victim.pid)[0].calls[1:]), "it reads again")
        assert state.read_text().split()[0] == "0"
        (kept,) = tracer.kept(victim.pid)
        # THEN what it has done is there, and what it is in
        first, second = kept.calls
        assert (call_name(first), first.result, first.no_entry) == ("read", 1, True)
        assert (call_name(second), second.result) == ("read", None)
        assert second.exit_ns is None
        # AND when it is killed, it comes as an event
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        event = next(tracer.read(10))
        assert isinstance(event, KeptEvent)
        assert (event.status, event.comm, event.made) == (signal.SIGKILL, "traced", 2)
        assert event.calls[-1].args[:1] == (0,)


def test_the_last_calls_of_many() -> None:
    rule = Rule(mode=RECORD, calls=8, strings=16, tell_failed=True)
    with Tracer(rule) as tracer:
        events, status = events_of(tracer, build("traced"), "text", "3000", "now")
    assert status == 3
    (event,) = events
    assert isinstance(event, KeptEvent)
    assert event.made > len(event.calls) == 8
    names = [call_name(call) for call in event.calls]
    assert names[-1] == "exit_group"
    assert names[-3:-1] == ["write", "openat"]
    text = event.calls[-3].texts[1]
    assert (text.data, text.cut) == (b"x" * 16, True)
    path = event.calls[-2].texts[1]
    assert path.data == b"/\x1b]0;title\x07\n+++ "


def test_who_had_no_room_to_tell_what_it_kept_is_named(tmp_path: Path) -> None:
    # GIVEN more threads than the ring has room for
    rule = Rule(mode=RECORD, calls=8, strings=16, tell_failed=True)
    with (
        running("traced", "threads", "100", cwd=tmp_path) as victim,
        Tracer(rule, ring=64 << 10) as tracer,
    ):
        assert tracer.attach(victim.pid) == 101
        tids = {int(path.name) for path in Path(f"/proc/{victim.pid}/task").iterdir()}
        # WHEN all of them die, and nobody reads
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        events = [event for event in tracer.read(10) if isinstance(event, KeptEvent)]
        losses = tracer.losses()
    # THEN each has told its call, or that it is lost
    assert {event.tid for event in events} == tids
    told = [event for event in events if event.calls]
    untold = [event for event in events if not event.calls]
    assert told
    assert len(untold) > 90
    assert all((event.made, event.lost_calls) == (1, 0) for event in told)
    assert all((event.made, event.lost_calls) == (0, 1) for event in untold)
    assert {event.tgid for event in events} == {victim.pid}
    assert len({event.start_ns for event in events}) == 1
    assert any(event.last for event in events)
    assert losses.calls == len(untold)
    assert not losses.unnamed
