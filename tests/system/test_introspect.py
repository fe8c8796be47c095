"""What the library says of live processes, against /proc and against what they know themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.capture.image import decode_maps
from collector.errors import ProcessError, ProcessGone, Unreadable
from collector.introspect import LiveProbe, Process, Source, ThreadState, open_live
from collector.model import ProcessKey
from collector.policy.facts import facts_of_living
from collector.probe.stacks import ThreadStack
from tests.system.live_victims import rows, wait_blocked
from tests.system.memory_cgroups import memory_cgroup
from tests.system.probe_support import LOADERS, key_of
from tests.system.victims import ROOT, running, wait_until

NOBODY = 65534
EXTRA = 1000
# Where each thread of sample_places is; a lock is waited for by futex(2).
CALLS = {
    "sample_places": "read",
    "lock-1": "futex",
    "lock-2": "futex",
    "nap": "clock_nanosleep",
    "poll": "poll",
    "spin": None,
}


@pytest.fixture(scope="module", params=LOADERS)
def live(request: pytest.FixtureRequest) -> Iterator[LiveProbe]:
    with open_live(request.param) as found:
        assert found.no_clock is None
        yield found


def settled(process: Process, stack: int = 0) -> dict[str, ThreadState]:
    """The threads of sample_places by name, when all have come to where they stay."""
    found: dict[str, ThreadState] = {}

    def all_there() -> bool:
        found.clear()
        found.update({t.name: t for t in process.threads(stack=stack)})
        calls = {name: t.syscall.name if t.syscall else None for name, t in found.items()}
        asleep = all(t.state == "S" for name, t in found.items() if CALLS.get(name))
        return calls == CALLS and asleep

    wait_until(all_there, f"the threads of {process.pid} do not come to where they stay")
    return found


def switches(pid: int) -> dict[int, tuple[str, ...]]:
    """Voluntary and involuntary context switches of each thread."""
    return {
        int(task.name): tuple(re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text()))
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def test_threads_are_where_they_say(live: LiveProbe, tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim, Process(victim.pid, probe=live) as p:
        threads = settled(p, stack=8192)
        maps = p.mappings()
    # THEN each but the spinning one sleeps
    assert {name: t.state for name, t in threads.items()} == {
        name: "R" if name == "spin" else "S" for name in CALLS
    }
    assert all(t.exact and t.source is Source.BPF for t in threads.values())
    # AND the words that the kernel was given are there
    (fd, *_), poll = threads["sample_places"].syscall.args, threads["poll"].syscall.args  # type: ignore[union-attr]
    assert (fd, poll[1:3]) == (0, (1, (1 << 64) - 1 & 0xFFFFFFFF))
    # AND every stack begins below its pointer, and is memory of one mapping
    for thread in threads.values():
        assert thread.registers is not None and thread.stack is not None
        sp = thread.registers.rsp
        (mapping,) = [m for m in maps if m.start <= sp < m.end]
        assert max(sp - 128, sp & -4096) == thread.stack.address
        block = thread.registers.fs_base
        end = min(sp + 8192, mapping.end, block if block > sp else mapping.end)
        assert len(thread.stack.data) == end - thread.stack.address


def test_a_spinning_thread_is_caught_in_the_act(live: LiveProbe, tmp_path: Path) -> None:
    # GIVEN a thread that never enters the kernel on its own, and counts in rax
    seen: list[ThreadState] = []
    with running("sample_places", cwd=tmp_path) as victim, Process(victim.pid, probe=live) as p:
        settled(p)

        # WHEN it is looked at until it was running a few times, by its own account as well, which
        # is exact to a tick
        def looked() -> bool:
            seen.extend(t for t in p.threads(stack=4096) if t.name == "spin" and t.on_cpu)
            return len(seen) >= 5 and seen[-1].runtime_ns > seen[0].runtime_ns

        wait_until(looked, "it never runs")
    # THEN each time its registers are of a later turn, its stack is whole, and it has used its CPU
    assert {(t.state, t.exact, t.syscall) for t in seen} == {("R", True, None)}
    turns = [t.registers.rax for t in seen if t.registers]
    assert turns == sorted(set(turns)) and len(turns) == len(seen)
    assert seen[-1].runtime_ns > seen[0].runtime_ns
    assert len({t.stack.data for t in seen if t.stack}) == 1  # its frames do not change


def test_nobody_notices(live: LiveProbe, tmp_path: Path) -> None:
    # GIVEN threads blocked in each kind of system call, and 1,000 more, which count what happens
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "1", str(EXTRA), cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before, counted = switches(victim.pid), rows(file)
        spinner = next(tid for tid, row in counted.items() if row.name == "spin")
        # WHEN they are sampled with their stacks, 20 times
        with Process(victim.pid, probe=live) as process:
            for _ in range(20):
                threads = process.threads(stack=16 << 10)
        after, counted_after = switches(victim.pid), rows(file)
    # THEN all were seen
    assert [t.tid for t in threads] == sorted(before)
    assert len(threads) > EXTRA
    # AND not one call came back, and not one thread was switched
    del counted[spinner], counted_after[spinner], before[spinner], after[spinner]
    assert counted_after == counted
    timed = {tid for tid, row in counted.items() if "timed" in row.name}
    assert {tid: n for tid, n in after.items() if tid not in timed} == {
        tid: n for tid, n in before.items() if tid not in timed
    }


def test_a_stack_is_of_the_moment_of_its_registers(live: LiveProbe, tmp_path: Path) -> None:
    # GIVEN threads that run some thousand times a second, with the same number in a register and
    # on the stack whenever they sleep
    with running("stepping", cwd=tmp_path) as victim:

        def look() -> list[ThreadStack]:
            return [t for t in live.sample(victim.pid, 512) if t.name == "step" and t.regs]

        wait_until(
            lambda: (
                len(steps := [t.regs[3] for t in look() if t.regs]) == 8
                and all(10 < step < 1 << 32 for step in steps)
            ),
            "they do not step",
        )
        seen = [t for _ in range(300) for t in look()]
    # THEN each that is said to be exact has the two of the same step
    exact = [(t.regs, t) for t in seen if t.exact and t.regs]
    assert len(exact) > len(seen) / 2
    assert len({(t.tid, regs[3]) for regs, t in exact}) > 100
    for regs, t in exact:
        at = regs[19] - t.stack_address
        word = int.from_bytes(t.stack[at : at + 8], "little")
        # one that was caught on its CPU may have been in the middle of a step
        assert regs[3] - word in ((0, 1) if t.on_cpu else (0,))


@pytest.mark.parametrize("use_bpf", [True, False])
def test_a_process_is_who_proc_says(use_bpf: bool, tmp_path: Path) -> None:
    with (
        running("sample_places", cwd=tmp_path) as victim,
        Process(victim.pid, use_bpf=use_bpf) as process,
    ):
        who = process.identity()
        mappings = process.mappings()
        expected = decode_maps(Path(f"/proc/{victim.pid}/maps").read_bytes())
        key = key_of(victim.pid)
        exe = os.readlink(f"/proc/{victim.pid}/exe")
    assert (who.key, who.comm, who.exe, who.cmdline) == (key, "sample_places", exe, [exe])
    assert (who.ns_pid, who.ppid, who.uid, who.threads) == (victim.pid, os.getpid(), 0, 6)
    shown = [(m.start, m.end, m.prot, m.offset, m.path) for m in mappings]
    assert shown == [
        (m.start, m.end, m.prot, m.offset, m.path)
        for m in expected
        if not use_bpf or m.path != "[vsyscall]"
    ]


def test_memory_is_read_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim, Process(victim.pid) as process:
        first = process.mappings()[0]
        exe = Path(f"/proc/{victim.pid}/exe").read_bytes()
        # THEN what is there is read
        assert process.read(first.start, 64) == exe[:64]
        assert next(process.populated(first.start, first.end))[0] == first.start
        assert process.read(first.start, 0) == b""
        # AND the first byte that is not is named
        for address, size, missing in (
            (0x1000, 8, 0x1000),
            (first.start - 4, 8, first.start - 4),
            ((1 << 64) - 8, 8, (1 << 64) - 8),
        ):
            with pytest.raises(Unreadable) as error:
                process.read(address, size)
            assert error.value.address == missing


def test_memory_is_that_of_the_new_program_after_exec(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "read line; exec sleep 1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child, Process(child.pid) as process:
        first = process.mappings()[0].start
        assert process.read(first, 4) == b"\x7fELF"
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        wait_until(lambda: process.identity().comm == "sleep", "no exec")
        wait_until(lambda: len(process.mappings()) > 10, "no memory")
        assert process.read(process.mappings()[0].start, 4) == b"\x7fELF"
        assert process.key == ProcessKey(child.pid, key_of(child.pid).start_ns)
        child.kill()


@pytest.mark.parametrize("use_bpf", [True, False])
def test_a_process_that_has_ended_stays_ended(use_bpf: bool) -> None:
    # GIVEN a process that is looked at
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        with Process(child.pid, use_bpf=use_bpf) as process:
            assert process.alive and not process.wait(0)
            # WHEN it ends and is waited for, so that another could have its pid
            child.kill()
            assert process.wait(60)
            child.wait()
            # THEN everything says so
            assert not process.alive
            for question in (
                process.identity,
                process.threads,
                process.mappings,
                lambda: process.read(0x1000, 1),
                lambda: list(process.populated(0, 4096)),
            ):
                with pytest.raises(ProcessGone):
                    question()
        with pytest.raises(ProcessGone):
            Process(child.pid)


def test_the_cgroup_of_a_process_whose_main_thread_has_ended(tmp_path: Path) -> None:
    # GIVEN a process in a cgroup, of which only another thread is left
    with (
        memory_cgroup(64 << 20) as group,
        running("probe_leaderless", cwd=tmp_path, cgroup=group.path) as victim,
    ):
        # THEN it is still there, although v1 says of an ended thread that it is in the root
        with Process(victim.pid) as process:
            assert f"/{group.path.name}\n" in process.cgroup().decode()
            assert process.identity().cgroup == f"/{group.path.name}"
        assert facts_of_living(victim.pid).cgroup == f"/{group.path.name}"


def test_what_is_no_process_is_refused(tmp_path: Path) -> None:
    with running("sample_places", cwd=tmp_path) as victim:
        tid = max(int(task.name) for task in Path(f"/proc/{victim.pid}/task").iterdir())
        with pytest.raises(ProcessGone, match=f"{tid} is a thread"):
            Process(tid)
    with Process(2) as kernel, pytest.raises(ProcessError, match="thread of the kernel"):
        kernel.threads()


def test_another_user_sees_what_proc_shows(tmp_path: Path) -> None:
    # GIVEN a process of root's, looked at by another user
    code = (
        "import sys\nfrom collector.errors import *\nfrom collector.introspect import Process\n"
        "with Process(int(sys.argv[1])) as p:\n"
        "    print(p.no_bpf)\n"
        "    print(sorted((t.name, t.state) for t in p.threads(stack=4096)))\n"
        "    for ask in (p.mappings, lambda: p.read(4096, 1)):\n"
        "        try:\n            ask()\n"
        "        except NotPermitted as error:\n            print(error)\n"
    )
    with running("sample_places", cwd=tmp_path) as victim:
        with Process(victim.pid) as process:
            settled(process)
        done = subprocess.run(
            [sys.executable, "-c", code, str(victim.pid)],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    refusal = (
        f"process {victim.pid} cannot be read: it is user 0's, this is user {NOBODY}: run as root"
    )
    states = sorted((name, "R" if name == "spin" else "S") for name in CALLS)
    assert (done.stdout.splitlines(), done.stderr) == (
        ["it needs root", str(states), refusal, refusal],
        "",
    )


def test_the_same_user_sees_system_calls_and_stacks_of_sleepers(tmp_path: Path) -> None:
    # GIVEN threads as BPF sees them, and as /proc tells them
    with (
        running("sample_places", cwd=tmp_path) as victim,
        Process(victim.pid) as process,
        Process(victim.pid, use_bpf=False) as by_proc,
    ):
        expected = settled(process, stack=2048)
        found = {t.name: t for t in by_proc.threads(stack=2048)}
    # THEN both say the same
    assert {t.source for t in found.values()} == {Source.PROC}
    for name in CALLS.keys() - {"spin"}:
        one, other = expected[name], found[name]
        assert (one.tid, one.state, one.syscall, one.ip, one.sp, one.voluntary) == (
            other.tid,
            other.state,
            other.syscall,
            other.ip,
            other.sp,
            other.voluntary,
        )
        assert one.stack is not None and other.stack is not None
        assert one.stack.data in other.stack.data
    assert (found["spin"].stack, found["spin"].syscall, found["spin"].exact) == (None, None, False)
