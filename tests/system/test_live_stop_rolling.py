"""Threads held one at a time: what is read of them, and that they do not notice."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from collector.arch.x86_64 import PAGE
from collector.capture.image import decode_maps
from collector.elfcore.types import Prot, Thread
from collector.errors import CaptureError
from collector.linux.pagemap import resident
from collector.probe.iterators import decode_threads
from collector.snapshot.rolling import Rolled, roll
from collector.snapshot.stop import Perturb, Why
from tests.system.live_victims import NOTICING, counters, rows, states, wait_blocked, wait_untraced
from tests.system.needs import needs
from tests.system.probe_support import opened
from tests.system.victims import ROOT, running, wait_until

ROUNDS = 20
RAX, RSP, FS_BASE = 10, 19, 21  # in struct user_regs_struct
RED_ZONE = 128
STACK = 16 << 10
NOBODY = 65534


def memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


@needs("usual speed")  # a thread stands for microseconds
def test_no_system_call_notices(tmp_path: Path) -> None:
    # GIVEN threads that block in each kind of system call, and two that compute
    file = tmp_path / "rows"
    with running("live_blocked", str(file), "2", cwd=tmp_path) as victim:
        wait_blocked(victim.pid, file)
        before = rows(file)
        for _ in range(ROUNDS):
            # WHEN each is held in turn
            rolled = roll(victim.pid)
            # THEN all were read
            assert sorted(s.thread.tid for s in rolled.samples) == sorted({victim.pid, *before})
            assert rolled.left_out == ()
            noticing = {before[s.thread.tid].name for s in rolled.samples if s.rewound}
            assert noticing == NOTICING
            wait_blocked(victim.pid, file)
        # AND no call came back
        after = rows(file)
        assert {r.name for tid, r in after.items() if r != before[tid]} == {"spin"}
        # AND no thread stood for long: typically less than 0.2 ms
        held = [sample.held_us for sample in rolled.samples]
        assert statistics.median(held) < 200
        assert rolled.worst_us == max(held)
        # AND under the other policy those that would notice are left alone
        left_out = roll(victim.pid, Perturb.NEVER).left_out
        names = {before[other.tid].name for other in left_out}
        assert names == NOTICING | {"accept", "recv"}
        assert {other.why for other in left_out} == {Why.PERTURB}
        assert rows(file).keys() == after.keys()
        assert {r.eintr for r in rows(file).values()} == {0}
        wait_untraced(victim.pid)


def test_registers_and_stacks(tmp_path: Path) -> None:
    # GIVEN blocked threads, listed without stopping them
    file = tmp_path / "rows"
    with (
        opened("core", "rolling") as probe,
        running("live_blocked", str(file), cwd=tmp_path) as victim,
    ):
        wait_blocked(victim.pid, file)
        listed = decode_threads(probe.threads(victim.pid))
        # WHEN each is held in turn
        rolled = roll(victim.pid, stack_bytes=STACK)
        # THEN their registers are the same but for rax
        found = [s.thread for s in rolled.samples]
        assert sorted(map(_comparable, found)) == sorted(map(_comparable, listed))
        # AND of their stacks there is what memory has
        for sample in rolled.samples:
            assert sample.stack_start == sample.thread.regs[RSP] - RED_ZONE
            # (behind the stack is the control block, where the kernel notes the CPU)
            own = min(len(sample.stack), max(sample.thread.regs[FS_BASE] - sample.stack_start, 0))
            own = own or len(sample.stack)
            assert sample.stack[:own] == memory(victim.pid, sample.stack_start, own)
            assert len(sample.stack) == STACK or ends_at(
                victim.pid, sample.stack_start + len(sample.stack)
            )
        times = [sample.time_ns for sample in rolled.samples]
        assert times == sorted(times)
        # AND without stacks there are none
        assert {s.stack for s in roll(victim.pid, stack_bytes=0).samples} == {b""}
        one = roll(victim.pid, only=[max(rows(file))])
        assert [s.thread.tid for s in one.samples] == [max(rows(file))]


def _comparable(thread: Thread) -> tuple[object, ...]:
    general = (*thread.regs[:RAX], *thread.regs[RAX + 1 :])
    return thread.tid, general, thread.xstate, thread.name, thread.sighold


def ends_at(pid: int, address: int) -> bool:
    """Whether a readable mapping ends here, or a page begins that was never touched."""
    maps = decode_maps(Path(f"/proc/{pid}/maps").read_bytes())
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        untouched = address % PAGE == 0 and not resident(pagemap.fileno(), address, 1)
    return untouched or any(m.end == address and m.prot & Prot.R for m in maps)


@needs("usual speed")  # a thread has 5 ms to be found
def test_threads_are_born_all_the_time(tmp_path: Path) -> None:
    file = tmp_path / "counters"
    with running("live_busy", str(file), cwd=tmp_path) as victim:
        for _ in range(ROUNDS):
            before, first = counters(file), states(victim.pid)
            found = {s.thread.tid for s in roll(victim.pid).samples}
            lasting = {t for t, state in states(victim.pid).items() if state not in "ZX"}
            assert lasting & {*first} <= found, "a thread was not found"
            wait_until(
                lambda was=before: all(
                    now > then for now, then in zip(counters(file)[:4], was[:4], strict=True)
                ),
                "not all threads go on",
            )
        end = counters(file)
        assert (end.eintr, end.wrong) == (0, 0)


def test_who_waits_in_vfork_is_left_out(tmp_path: Path) -> None:
    with running("live_vfork", cwd=tmp_path) as victim:
        wait_until(lambda: sorted(states(victim.pid).values()) == ["D", "S", "S"], "no vfork")
        (waiting,) = [tid for tid, state in states(victim.pid).items() if state == "D"]
        rolled = roll(victim.pid)
        assert {s.thread.tid for s in rolled.samples} == {*states(victim.pid)} - {waiting}
        assert [(o.tid, o.why) for o in rolled.left_out] == [(waiting, Why.UNINTERRUPTIBLE)]
        wait_untraced(victim.pid)
        victim.go()
        assert victim.wait() == 0


AS_NOBODY = """
import sys
from collector.capture.image import decode_maps
from collector.snapshot.rolling import roll
from collector.errors import CaptureError
try:
    print(*sorted(len(s.stack) > 0 for s in roll(int(sys.argv[1])).samples))
except CaptureError as error:
    print(error)
"""


def as_nobody(pid: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(pid)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_users_may_roll_what_is_theirs(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    with running("live_vfork", cwd=tmp_path, uid=NOBODY) as victim:
        wait_until(lambda: sorted(states(victim.pid).values()) == ["D", "S", "S"], "no vfork")
        assert as_nobody(victim.pid) == "True True"
    with running("live_signals", cwd=tmp_path) as victim:
        expected = f"process {victim.pid} belongs to user 0 and this program runs as user {NOBODY}"
        assert as_nobody(victim.pid) == f"{expected}: be that user, or root"


def test_nothing_of_a_process_that_is_gone() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(CaptureError, match=f"there is no process {child}"):
        roll(child)
    assert Rolled((), ()).worst_us == 0
