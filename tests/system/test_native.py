"""The native part: it gathers what the kernel tells as well, and releases only where it may."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.agent.gather import Gathered, gather
from collector.agent.release import bytes_of
from collector.elfcore.reader import CoreFile
from collector.errors import HoldError
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native, Taken
from collector.linux.memory import LevelKey
from collector.model import TICK_NS, ProcessKey
from collector.native import library
from collector.native.build import build_library
from collector.probe.iterators import decode_mappings, decode_threads
from collector.probe.probe import Probe
from tests.system.agents import agent
from tests.system.memory_cgroups import memory_cgroup
from tests.system.needs import by_socket, needs
from tests.system.probe_support import opened
from tests.system.settings import kernel_settings
from tests.system.two_cores import differences, dumped, plain_thread, two_cores
from tests.system.victims import PATIENCE, Victim, build, killed_with, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNLIMITED = "defaults: {limit: none}\n"
ROOM = 1 << 40  # bytes
MIB = 1 << 20
FUTEX_TID_MASK = 0x3FFFFFFF  # <linux/futex.h>


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with opened("core", "native") as one:
        yield one


@pytest.fixture
def native(probe: Probe) -> Native:
    return Native(*probe.iterators)


class Crashing:
    """A coredump socket, for one crash."""

    def __init__(self, folder: Path) -> None:
        self.backend = SocketBackend(folder / "core.sock")
        self._served: list[Native] = []

    def __enter__(self) -> Crashing:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    def serve(self, native: Native) -> None:
        if native not in self._served:
            native.serve(self.backend)
            self._served.append(native)

    def take(self, native: Native) -> Taken:
        """The next crash, waited for."""
        self.serve(native)
        taken = native.take(PATIENCE)
        assert taken is not None
        return taken


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Crashing]:
    with kernel_settings() as settings, Crashing(tmp_path) as one:
        settings.write("core_pattern", one.backend.pattern)
        yield one


def lasting(status: bytes) -> bytes:
    """Of a status file what does not change from one look at a held process to the next."""
    return re.sub(rb"(?m)^(\w*ctxt\w*:.*|State:.*|FDSize:.*|.* kB)\n", b"", status)


@contextlib.contextmanager
def held(native: Native, crashing: Crashing, victim: Victim) -> Iterator[Gathered]:
    """A process that has crashed, and is held: nobody has allowed its release."""
    victim.go()
    taken = crashing.take(native)
    with taken.handoff, contextlib.closing(gather(taken)) as gathered:
        assert gathered.pin is None and victim.process.poll() is None
        yield gathered


@needs("socket hand-off")
@pytest.mark.parametrize("bpf", [True, False], ids=["bpf", "no bpf"])
def test_texts_and_files_are_those_of_proc(
    probe: Probe, crashing: Crashing, tmp_path: Path, bpf: bool
) -> None:
    native = Native(*probe.iterators) if bpf else Native()
    arguments = (str(tmp_path / "mapped.bin"),)
    with (
        running("mixed", *arguments, cwd=tmp_path, core_limit=1 << 30) as victim,
        held(native, crashing, victim) as gathered,
    ):
        dying, proc = gathered.dying, Path(f"/proc/{victim.pid}")
        text = dying.text
        assert text.stat.split()[:2] == (proc / "stat").read_bytes().split()[:2]
        assert lasting(text.status) == lasting((proc / "status").read_bytes())
        for name in ("cmdline", "auxv", "cgroup", "coredump_filter"):
            assert getattr(text, name) == (proc / name).read_bytes()
        assert text.maps == (None if bpf else (proc / "maps").read_bytes())
        for name, fd in (
            *(("mem", dying.mem_fd), ("pagemap", dying.pagemap_fd), ("root", dying.root_fd)),
            *(("exe", dying.exe_fd), ("ns/mnt", dying.mount_fd)),
        ):
            assert fd is not None and os.fstat(fd).st_ino == (proc / name).stat().st_ino
        assert dying.core_limit == 1 << 30
        assert dying.key.start_ns // TICK_NS == int(text.stat.rpartition(b")")[2].split()[19])
        # AND the files behind shared mappings that have no name are open, where BPF tells of them
        lines = [line.split() for line in (proc / "maps").read_text().splitlines()]
        unnamed = [w[0] for w in lines if w[1][3] == "s" and w[-1] == "(deleted)"]
        assert len(unnamed) == 2
        starts = [int(place.partition("-")[0], 16) for place in unnamed]
        assert sorted(gathered.shared_fds) == (starts if bpf else [])


@needs("socket hand-off")
@pytest.mark.parametrize(
    ("victim", "arguments"), [("robust", ("600",)), ("threads", ("600",)), ("null_main", ())]
)
def test_registers_mappings_and_memory_are_those_of_the_kernels_core(
    probe: Probe, tmp_path: Path, victim: str, arguments: tuple[str, ...]
) -> None:
    """`mixed` is looked at more closely in test_core_equality."""
    with kernel_settings() as settings, Crashing(tmp_path) as crashing:
        cores = two_cores(probe, crashing.backend, settings, tmp_path, victim, *arguments)
    with CoreFile(cores.kernel) as kernel, CoreFile(cores.ours) as ours:
        by_tid = {thread.tid: plain_thread(thread) for thread in ours.threads}
        assert by_tid == {thread.tid: plain_thread(thread) for thread in kernel.threads}
        assert dumped(ours) == dumped(kernel)
        assert (ours.siginfo, ours.auxv) == (kernel.siginfo, kernel.auxv)
        assert differences(kernel, ours) == []


@needs("socket hand-off")
@pytest.mark.parametrize(("victim", "locks"), [("robust", 603), ("threads", 0)])
def test_words_that_exit_changes(
    native: Native, crashing: Crashing, tmp_path: Path, victim: str, locks: int
) -> None:
    # GIVEN a process with 600 threads beside the main one, which hold robust mutexes, or none
    with (
        running(victim, "600", cwd=tmp_path) as process,
        held(native, crashing, process) as gathered,
    ):
        tids = {int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()}
        values = [int.from_bytes(patch.data, "little") for patch in gathered.patches]
        # THEN there is a word with the id of each thread, and one for each mutex that is held
        assert len(values) == len(tids) + locks and len(tids) == 601
        assert {value & FUTEX_TID_MASK for value in values} == tids
        memory = gathered.dying.mem_fd
        assert all(os.pread(memory, 4, p.address) == p.data for p in gathered.patches)


@needs("socket hand-off")
@pytest.mark.parametrize("bpf", [True, False], ids=["bpf", "no bpf"])
def test_a_process_whose_main_thread_has_ended(
    probe: Probe, crashing: Crashing, tmp_path: Path, bpf: bool
) -> None:
    # GIVEN a process of which only another thread is left
    native = Native(*probe.iterators) if bpf else Native()
    with running("probe_leaderless", cwd=tmp_path) as victim:
        tids = {int(task.name) for task in Path(f"/proc/{victim.pid}/task").iterdir()}
        (survivor,) = tids - {victim.pid}
        # WHEN it is killed by a signal that dumps core
        os.kill(victim.pid, signal.SIGSEGV)
        taken = crashing.take(native)
        # THEN the memory and the files are those of that thread
        with taken.handoff, contextlib.closing(gather(taken)) as gathered:
            dying = gathered.dying
            assert (dying.pid, dying.tid) == (victim.pid, survivor)
            assert dying.exe_fd is not None
            assert os.readlink(f"/proc/self/fd/{dying.exe_fd}") == str(build("probe_leaderless"))
            assert dying.cmdline == [str(build("probe_leaderless"))]
            assert len(os.pread(dying.mem_fd, 8, gathered.address)) == 8
            if gathered.threads is not None and gathered.mappings is not None:
                assert survivor in {t.tid for t in decode_threads(gathered.threads)}
                mappings = decode_mappings(gathered.mappings, None)
                assert "[stack]" in {mapping.path for mapping in mappings}
                words = {p.address: int.from_bytes(p.data, "little") for p in gathered.patches}
                assert list(words.values()) == [survivor]
            else:
                assert gathered.head is not None and b"[stack]" in (dying.text.maps or b"")
        assert victim.wait() == -signal.SIGSEGV


def take(native: Native, crashing: Crashing, victim: Victim) -> Gathered:
    """Let it crash, and have it taken."""
    victim.go()
    taken = crashing.take(native)
    gathered = gather(taken)
    taken.handoff.release()
    assert victim.wait() == -signal.SIGSEGV
    return gathered


def shares_of(gathered: Gathered) -> dict[LevelKey, int]:
    """What its pin takes of its owner's shares."""
    assert gathered.owner is not None
    return {gathered.owner: 1, bytes_of(gathered.owner): gathered.size}


@needs("socket hand-off")
@pytest.mark.parametrize(
    ("instant", "pins", "pinned", "others", "at_once"),
    [
        (True, 2, ROOM, (1, 0), True),
        (False, 2, ROOM, (0, 0), False),
        (True, 1, ROOM, (1, 0), False),
        (True, 2, 1 << 20, (0, 1 << 20), False),
        (True, 2, ROOM, (0, 1 << 45), False),
    ],
    ids=["room", "policy", "pins", "pinned", "memory"],
)
def test_it_lets_go_only_where_it_may(
    native: Native,
    crashing: Crashing,
    tmp_path: Path,
    instant: bool,
    pins: int,
    pinned: int,
    others: tuple[int, int],
    at_once: bool,
) -> None:
    native.allow(instant=instant, max_pins=pins, max_pinned=pinned)
    native.count(*others)
    with running("null_main", cwd=tmp_path) as victim:
        gathered = take(native, crashing, victim)
        assert (gathered.pin is not None) is at_once
        # AND what it has released is known, and counts until somebody takes it over; a later
        # process of its pid is not taken for it
        key = gathered.dying.key
        assert native.has_in_hand(key) is at_once
        later = ProcessKey(key.pid, key.start_ns + 3 * TICK_NS)
        assert not native.has_in_hand(later)
        assert native.fresh() == (
            (1, gathered.size, shares_of(gathered)) if at_once else (0, 0, {})
        )
        native.joined(later)
        assert native.has_in_hand(key) is at_once
        if at_once:
            assert 1 << 12 < gathered.size < 1 << 22
            native.entered(gathered.size, gathered.levels)
            native.joined(key)
        assert native.fresh() == (0, 0, {}) and not native.has_in_hand(key)
        gathered.close()


@needs("socket hand-off")
@pytest.mark.parametrize(
    ("limit", "others", "at_once"),
    [(256 * MIB, 0, True), (48 * MIB, 0, False), (256 * MIB, 200 * MIB, False)],
    ids=["room", "no room", "room for one, and another was before it"],
)
def test_a_process_in_a_cgroup_with_a_limit(
    native: Native, crashing: Crashing, tmp_path: Path, limit: int, others: int, at_once: bool
) -> None:
    # GIVEN a process of 32 MiB whose memory cgroup has a limit
    native.allow(instant=True, max_pins=9, max_pinned=ROOM)
    with memory_cgroup(limit) as group:
        about = group.path.stat()
        key = LevelKey(about.st_dev, about.st_ino)
        # AND the account has others' memory there, and elsewhere
        native.count(2, 512 * MIB, {key: others, LevelKey(1, 1): 300 * MIB})
        with running("resident", "32", "1", cwd=tmp_path, cgroup=group.path) as victim:
            # WHEN it dies
            gathered = take(native, crashing, victim)
            # THEN it goes at once if a successor has room beside theirs
            assert (gathered.pin is not None) is at_once
            taken = {key: gathered.size, **shares_of(gathered)} if at_once else {}
            assert native.fresh()[2] == taken
            assert gathered.levels == tuple(taken)
            if at_once:
                assert 32 * MIB < gathered.size < 40 * MIB
                native.entered(gathered.size, gathered.levels)
            assert native.fresh() == (0, 0, {})
            native.joined(gathered.dying.key)
            gathered.close()


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_what_exit_changes_is_as_it_was(backend: str, tmp_path: Path) -> None:
    # GIVEN threads that hold robust mutexes
    with (
        agent(tmp_path, backend=backend, config=UNLIMITED) as one,
        running("robust", "600", cwd=tmp_path) as victim,
    ):
        # WHEN they die, and are let go at once
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
        record = one.record(victim.pid)
        assert record["release"] == "instant"
        core = tmp_path / "plain.core"
        one.command("core", record["id"], "-o", str(core))
    # THEN the core has each as held by its thread, not as left behind by a dead one
    asked = [
        f"output/x {{locks[{n}].__data.__lock, locks[{n}].__data.__owner}}" for n in range(603)
    ]
    command = ["gdb", "-nx", "-batch", *(w for a in asked for w in ("-ex", a, "-ex", "echo \\n"))]
    done = subprocess.run(
        [*command, str(build("robust")), str(core)], capture_output=True, text=True, check=True
    )
    words = re.findall(r"^\{(0x[0-9a-f]+), (0x[0-9a-f]+)\}$", done.stdout, re.MULTILINE)
    assert len(words) == 603
    assert all(lock == owner != "0x0" for lock, owner in words)


@needs("socket hand-off")
def test_a_process_that_nothing_is_decided_of_is_let_go(
    native: Native, crashing: Crashing, tmp_path: Path
) -> None:
    # GIVEN a watchdog, and two processes that are held
    native.allow(instant=False, max_pins=0, max_pinned=0, patience_s=0.2)
    with running("null_main", cwd=tmp_path) as one, running("null_main", cwd=tmp_path) as other:
        one.go()
        decided = crashing.take(native)
        # WHEN somebody decides that the first one has to wait, and nobody decides of the other one
        decided.handoff.keep(PATIENCE)
        other.go()
        taken = crashing.take(native)
        assert other.wait() == -signal.SIGSEGV
        # THEN that one has gone, which whoever decides later is told; the first one waits still
        with contextlib.closing(taken), pytest.raises(HoldError, match=r"hold\.patience"):
            taken.handoff.keep(PATIENCE)
        assert one.process.poll() is None
        decided.close()
        assert one.wait() == -signal.SIGSEGV


def address_space() -> int:
    """Of this process, in bytes."""
    found = re.search(r"^VmSize:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10


@needs("socket hand-off")
def test_address_space_serves_one_process_after_the_other(
    native: Native, crashing: Crashing, tmp_path: Path
) -> None:
    sizes = []
    for _ in range(4):
        # WHEN one process after the other was taken
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            crashing.take(native).close()
            victim.wait()
        sizes.append(address_space())
    # THEN there is no second area, of 1 GiB each
    assert max(sizes) - sizes[0] < 1 << 30


TAKER_NICE = -10  # as in pool.h


def takers() -> list[int]:
    """How each of our takers is scheduled."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # threads of others come and go
            if os.getpriority(os.PRIO_PROCESS, int(task.name)) == TAKER_NICE:
                found.append(os.sched_getscheduler(int(task.name)))
    return found


@pytest.fixture
def _real_time() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("no real time for this process")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@needs("socket hand-off")
@pytest.mark.usefixtures("_real_time")
def test_takers_are_of_real_time(native: Native, crashing: Crashing, tmp_path: Path) -> None:
    with running("null_main", cwd=tmp_path) as victim:
        victim.go()
        # WHEN one of them has taken a process
        crashing.take(native).close()
        victim.wait()
    # THEN they come before all that is not of real time
    wait_until(lambda: set(takers()) == {os.SCHED_RR}, "they are not of real time")


@needs("socket hand-off")
@pytest.mark.usefixtures("_real_time")
def test_a_taker_that_has_much_to_do_shares_the_cpus(
    native: Native, crashing: Crashing, tmp_path: Path
) -> None:
    # GIVEN a process whose memory is locked, again and again, by others that share it
    with killed_with("shared_lock"), running("shared_lock", "600", cwd=tmp_path) as victim:
        crashing.serve(native)
        victim.go()
        # WHEN it keeps a taker for more than a moment, THEN that one is not of real time
        wait_until(lambda: os.SCHED_OTHER in takers(), "it stays of real time")
    # AND is again, when it has done with it
    crashing.take(native).close()
    wait_until(lambda: set(takers()) == {os.SCHED_RR}, "they are not of real time again")


def test_a_library_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "other.c"
    functions = [f"long {name}(void) {{ return 1; }}\n" for name in library.FUNCTIONS]
    source.write_text("".join(functions))
    other = tmp_path / "other.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", other, source], check=True)
    for path, why in [(other, "is of another version"), (source, "build it with `make setup`")]:
        with pytest.raises(HoldError, match=why):
            Native(path=path)
    Native(path=build_library(tmp_path))
    monkeypatch.setattr(library, "find", lambda name: None)
    with pytest.raises(HoldError, match="was not built; run `make setup`"):
        Native()


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_memory_that_keeps_readers_waiting(backend: str, tmp_path: Path) -> None:
    # GIVEN processes whose arguments and robust lists are where a reader waits for ever
    with agent(tmp_path, backend=backend, config=UNLIMITED) as one:
        for _ in range(6):  # more than there are takers
            with running("waiting", cwd=tmp_path) as victim:
                # WHEN they crash, THEN they go at once all the same
                victim.go()
                assert victim.wait() == -signal.SIGSEGV
                record = one.record(victim.pid)
                assert (record["release"], record["outcome"]) == ("instant", "complete")
