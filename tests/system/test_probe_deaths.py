"""What BPF reports of deaths, and what it does not: the same for both loaders, on a real kernel."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from collector.capture.image import decode_maps
from collector.elfcore.types import Prot
from collector.linux import cgroupfs
from collector.model import (
    Access,
    CrashSite,
    Event,
    Exit,
    FatalSignal,
    OomVictim,
    Sender,
)
from collector.probe.probe import Probe
from tests.system.memory_cgroups import memory_cgroup
from tests.system.probe_support import (
    LOADERS,
    drain_until,
    events_of,
    key_of,
    opened,
    overlay,
)
from tests.system.raw_tracepoints import count_raw_tracepoint_links
from tests.system.victims import Victim, build, running

pytestmark = pytest.mark.alone  # it looks at all deaths
SEGV_MAPERR = 1  # <asm-generic/siginfo.h>
SI_USER = 0
SI_TKILL = -6
CORE = 0x80  # the core bit of a wait status
TEN_MS = 10_000_000
PATTERN = b"a pattern on the stack of the dying thread\0"


@pytest.fixture(scope="module", params=LOADERS)
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    with opened(request.param, "deaths") as found:
        yield found


def me() -> Sender:
    return Sender(pid=os.getpid(), comm=Path("/proc/self/comm").read_text().strip(), uid=0)


def shape(events: list[Event]) -> list[tuple[type[Event], int]]:
    """Which events, with the signal or the exit status (without the core bit)."""
    return [
        (type(event), event.signal)
        if isinstance(event, FatalSignal)
        else (type(event), event.status & ~CORE if isinstance(event, Exit) else 0)
        for event in events
    ]


def fatal_of(events: list[Event]) -> FatalSignal:
    (found,) = [event for event in events if isinstance(event, FatalSignal)]
    return found


def exit_of(events: list[Event]) -> Exit:
    (found,) = [event for event in events if isinstance(event, Exit)]
    return found


class Facts(NamedTuple):
    """What probe_null says of itself before it dies."""

    instruction: int
    pattern: int
    tid: int


def facts_of(victim: Victim) -> Facts:
    assert victim.process.stderr is not None
    instruction, pattern, tid = victim.process.stderr.readline().split()
    return Facts(int(instruction, 16), int(pattern, 16), int(tid))


def site_of(pid: int, address: int) -> CrashSite:
    """The build-id and file offset of an address of a live process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = re.match(r"(\w+)-(\w+) \S+ (\w+) \S+ \d+ +(/.*)", line)
        if found and int(found[1], 16) <= address < int(found[2], 16):
            with open(found[4], "rb") as file:
                notes = ELFFile(file).get_section_by_name(".note.gnu.build-id").iter_notes()
                build_id = next(notes)["n_desc"]
            return CrashSite(
                build_id=build_id, offset=address - int(found[1], 16) + int(found[3], 16)
            )
    raise AssertionError(f"{address:#x} is in no file")


@pytest.mark.parametrize("where", ["main", "worker"])
def test_a_null_dereference_is_reported_whole(probe: Probe, tmp_path: Path, where: str) -> None:
    # GIVEN a process with known registers and stack, about to write to address 0x10
    with running("probe_null", where, cwd=tmp_path, core_limit=0, stderr=subprocess.PIPE) as victim:
        facts = facts_of(victim)
        key = key_of(victim.pid)

        # WHEN it does
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
    events = events_of(probe, victim.pid)

    # THEN both events name the process and its thread
    assert shape(events) == [(FatalSignal, signal.SIGSEGV), (Exit, signal.SIGSEGV)]
    fatal, left = fatal_of(events), exit_of(events)
    who = fatal.who
    assert left.who.key == who.key
    assert who.key.pid == victim.pid and 0 <= who.key.start_ns - key.start_ns < TEN_MS
    assert (who.tid, who.ns_tid, who.ns_pid) == (facts.tid, facts.tid, victim.pid)
    assert (who.ppid, who.uid, who.gid) == (os.getpid(), 0, 0)
    assert (who.comm, who.exe) == ("probe_null", str(build("probe_null")))
    # AND tell the fault, verbatim
    assert (fatal.si_code, fatal.si_addr, fatal.sender) == (SEGV_MAPERR, 0x10, None)
    assert struct.unpack_from("<iiiiQ", fatal.siginfo) == (signal.SIGSEGV, 0, SEGV_MAPERR, 0, 0x10)
    assert len(fatal.siginfo) == 128
    assert fatal.fault_access is Access.WRITE
    assert fatal.last_fault is None and left.sender is None
    # AND the registers of the faulting instruction: r15, r12, rax, rip
    assert [fatal.regs[i] for i in (0, 3, 10, 16)] == [
        0x1122334455667788,
        0x99AABBCCDDEEFF00,
        0,
        facts.instruction,
    ]
    # AND the stack from the page of the red zone on
    assert fatal.stack[0].address == (fatal.regs[19] - 128) & ~4095
    pages = {page.address: page.data for page in fatal.stack}
    start = facts.pattern & ~4095
    inside = facts.pattern - start
    data = pages[start] + pages.get(start + 4096, b"")
    assert data[inside : inside + len(PATTERN)] == PATTERN


def test_the_crash_site_is_a_build_id_and_an_offset(probe: Probe, tmp_path: Path) -> None:
    if count_raw_tracepoint_links("signal_deliver") > 1:
        # With interrupts off, the kernel lets one program per CPU look up build-ids; the next
        # one at the same tracepoint gets none.
        pytest.skip("another probe runs on this machine")
    with running(
        "probe_null", "main", cwd=tmp_path, core_limit=0, stderr=subprocess.PIPE
    ) as victim:
        expected = site_of(victim.pid, facts_of(victim).instruction)
        victim.go()
        victim.wait()
    assert fatal_of(events_of(probe, victim.pid)).site == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_sent_signal_names_its_sender(
    probe: Probe, tmp_path: Path, number: signal.Signals
) -> None:
    with running("threads", "4", cwd=tmp_path, core_limit=0) as victim:
        os.kill(victim.pid, number)
        assert victim.wait() == -number
    events = events_of(probe, victim.pid)
    assert shape(events) == [(FatalSignal, number), (Exit, number)]
    assert fatal_of(events).sender == me()
    assert exit_of(events).sender == me()
    # the kernel keeps the siginfo only of signals that dump core
    has_info = number == signal.SIGSEGV
    assert fatal_of(events).si_code == (SI_USER if has_info else None)
    assert bool(fatal_of(events).siginfo) == has_info
    assert fatal_of(events).si_addr is None


def test_abort_is_sent_by_the_process_itself(probe: Probe, tmp_path: Path) -> None:
    with running("assertion", cwd=tmp_path, core_limit=0) as victim:
        victim.go()
        assert victim.wait() == -signal.SIGABRT
    events = events_of(probe, victim.pid)
    assert shape(events) == [(FatalSignal, signal.SIGABRT), (Exit, signal.SIGABRT)]
    assert fatal_of(events).si_code == SI_TKILL
    assert fatal_of(events).sender == Sender(pid=victim.pid, comm="assertion", uid=0)


@pytest.mark.parametrize(("wanted", "shapes"), [(True, [(Exit, 3 << 8)]), (False, [])])
def test_exit_with_a_status_is_reported_if_wanted(
    probe: Probe, tmp_path: Path, wanted: bool, shapes: list[tuple[type[Event], int]]
) -> None:
    probe.set_want_exits(wanted)
    try:
        with running("exit_status", "3", cwd=tmp_path) as victim:
            victim.go()
            assert victim.wait() == 3
        assert shape(events_of(probe, victim.pid)) == shapes
    finally:
        probe.set_want_exits(False)


def test_exit_after_a_handled_fault_is_reported_with_it(probe: Probe, tmp_path: Path) -> None:
    with running("handled", "exit", cwd=tmp_path) as victim:
        victim.go()
        assert victim.wait() == 1
    events = events_of(probe, victim.pid)
    assert shape(events) == [(Exit, 1 << 8)]
    fault = exit_of(events).last_fault
    assert fault is not None
    assert (fault.tid, fault.signal, fault.si_code, fault.si_addr) == (
        victim.pid,
        signal.SIGSEGV,
        SEGV_MAPERR,
        0x20,
    )
    assert fault.time_ns < exit_of(events).time_ns


def test_a_signal_raised_again_keeps_the_fault_before_it(probe: Probe, tmp_path: Path) -> None:
    with running("handled", "reraise", cwd=tmp_path, core_limit=0) as victim:
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
    events = events_of(probe, victim.pid)
    assert shape(events) == [(FatalSignal, signal.SIGSEGV), (Exit, signal.SIGSEGV)]
    fault = fatal_of(events).last_fault
    assert fault is not None and fault.si_addr == 0x20
    assert fatal_of(events).si_code == SI_TKILL
    assert fatal_of(events).sender == Sender(pid=victim.pid, comm="handled", uid=0)


def test_a_handled_fault_alone_is_only_counted(probe: Probe, tmp_path: Path) -> None:
    before = probe.counters().handled
    with running("handled", "return", cwd=tmp_path) as victim:
        victim.go()
        assert victim.wait() == 0
    assert events_of(probe, victim.pid) == []
    assert probe.counters().handled > before


@pytest.mark.parametrize("how", ["exec", "exit"])
def test_threads_that_their_process_ends_are_no_deaths(
    probe: Probe, tmp_path: Path, how: str
) -> None:
    probe.set_want_exits(True)
    try:
        with running("probe_leave", how, cwd=tmp_path) as victim:
            victim.go()
            assert victim.wait() == 0
        assert events_of(probe, victim.pid) == []
    finally:
        probe.set_want_exits(False)


def test_a_process_in_a_pid_namespace_has_both_pids(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a process that is pid 2 of a new namespace, run from a file that exists only there
    inner = tmp_path / "inner"
    inner.mkdir()
    program = build("null_main")
    with running(
        "namespace", str(inner), str(program), "now", cwd=tmp_path, core_limit=0
    ) as victim:
        assert victim.wait() == 128 + signal.SIGSEGV
    marker = subprocess.Popen(["/bin/sleep", "1000"])
    marker.kill()
    marker.wait()
    events = [e for e in drain_until(probe, marker.pid) if e.who.comm == "null_main"]
    assert shape(events) == [(FatalSignal, signal.SIGSEGV), (Exit, signal.SIGSEGV)]
    who = fatal_of(events).who
    assert (who.ns_pid, who.ns_tid) == (2, 2)
    assert who.key.pid > 2 and who.key.pid == who.tid
    assert who.exe == f"{inner}/null_main"


def test_an_oom_kill_is_known_as_one(probe: Probe, tmp_path: Path) -> None:
    with memory_cgroup(16 << 20) as group, running("probe_hog", "64", cwd=tmp_path) as victim:
        group.enter(victim.pid)
        victim.go()
        assert victim.wait() == -signal.SIGKILL
    events = events_of(probe, victim.pid)
    assert shape(events) == [
        (OomVictim, 0),
        (FatalSignal, signal.SIGKILL),
        (Exit, signal.SIGKILL),
    ]
    assert len({event.who.key for event in events}) == 1
    assert events[0].who.exe == str(build("probe_hog"))
    assert fatal_of(events).sender is None


def test_a_killed_process_tells_its_cgroup(probe: Probe, tmp_path: Path) -> None:
    # GIVEN a process in a cgroup of whichever hierarchy has the memory controller
    with memory_cgroup(256 << 20) as group:
        with running("null_main", cwd=tmp_path, cgroup=group.path) as victim:
            # WHEN it is killed, and waited for
            victim.process.kill()
            assert victim.wait() == -signal.SIGKILL
        events = events_of(probe, victim.pid)
        # THEN what is told of it names that cgroup
        found = {cgroupfs.path_of(event.who.cgroup_id) for event in events}
    assert found == {f"/{group.path.name}"}


def test_a_killed_process_of_a_container_tells_its_objects(probe: Probe, tmp_path: Path) -> None:
    if probe.loader == "bcc":
        pytest.skip("bcc has no kernel functions: no iterator over mappings in a program")
    # GIVEN a process whose program is on an overlay, where the kernel maps another file system's
    with overlay(tmp_path) as merged:
        program = merged / "victim"
        shutil.copy(build("null_main"), program)
        with running("null_main", cwd=tmp_path, file=program) as victim:
            maps = decode_maps(Path(f"/proc/{victim.pid}/maps").read_bytes())
            victim.process.kill()
            assert victim.wait() == -signal.SIGKILL
        left = exit_of(events_of(probe, victim.pid))
    # THEN its exit names each of its files: their heads and their code
    expected = {
        (m.start, m.end, m.offset, bool(m.prot & Prot.X), m.path)
        for m in maps
        if m.inode and (m.offset == 0 or m.prot & Prot.X)
    }
    assert {(m.start, m.end, m.offset, m.executable, m.path) for m in left.mapped} == expected
    assert str(program) in {m.path for m in left.mapped}


def test_what_is_not_told_is_counted(probe: Probe) -> None:
    # GIVEN a program whose share of the ring is smaller than what comes
    deaths, program, before = 2000, build("storm"), probe.counters()
    probe.drain()
    # WHEN it kills children of its own as fast as it can, and nobody reads
    storm = subprocess.Popen([program, str(deaths)])
    assert storm.wait() == 0
    # THEN each of these deaths is told or counted, and none dropped
    events = [event for event in probe.drain() if event.who.ppid == storm.pid]
    found = [one for one in probe.tallies.all() if one.who.exe == str(program)]
    counted = sum(one.count for one in found)
    assert counted > 0
    for kind in (FatalSignal, Exit):
        assert sum(isinstance(event, kind) for event in events) + counted == deaths
    after = probe.counters()
    assert after.dropped_exit == before.dropped_exit
    # AND of those that are told few have their stacks
    stacks = [event for event in events if isinstance(event, FatalSignal) and event.stack]
    assert 0 < len(stacks) < 200
    # AND a count says whose it is
    assert {one.signal for one in found} == {signal.SIGKILL}
    assert {one.sender.comm for one in found if one.sender} == {"storm"}

    # AND others have their own share
    other = subprocess.Popen(["/bin/sleep", "1000"])
    other.kill()
    other.wait()
    assert shape(events_of(probe, other.pid)) == [
        (FatalSignal, signal.SIGKILL),
        (Exit, signal.SIGKILL),
    ]
