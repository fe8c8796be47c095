"""Crashes that the kernel hands over to us, by socket and by pipe, on the real kernel."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from collector.errors import HoldError, TakeoverRefused
from collector.handoff import backends
from collector.handoff.backends import NoBackend, open_backend
from collector.handoff.native import Native
from collector.handoff.pipe import PATIENCE_S, PipeBackend, SpooledNotes
from collector.handoff.settings import SettingsGuard
from collector.linux import libbpf, procfs
from collector.model import TICK_NS, Backend
from collector.native.build import build
from tests.system.hold_support import BOTH, Place, Victim, accept, place
from tests.system.needs import by_socket, needs
from tests.system.victims import PATIENCE

SEGV_WITH_CORE_BIT = signal.SIGSEGV | 0x80
PATTERN = Path("/proc/sys/kernel/core_pattern")
LIMIT = Path("/proc/sys/kernel/core_pipe_limit")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
EITHER = (by_socket(Backend.SOCKET), Backend.PIPE)


def sometimes(it_holds: Callable[[], bool]) -> bool:
    """For what depends on time: a machine that is busy otherwise may spoil some tries, not all."""
    return any(it_holds() for _ in range(5))


def goes_by_itself(where: Place) -> bool:
    """Whether a process that crashes now is gone soon after PATIENCE_S, if nobody takes it."""
    with Victim(where) as victim:
        return victim.gone_after(victim.crash()) < PATIENCE_S + 0.1


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as where:
        yield where


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("user", [None, 65534], ids=["root", "nobody"])
def test_a_crash_is_held_until_it_is_released(here: Place, kind: Backend, user: int | None) -> None:
    """
    GIVEN a backend that is open
    WHEN a process crashes
    THEN it arrives with its pid and signal, waits for us, and is gone when we let go
    """
    with here.backend(kind) as backend, Victim(here, user=user) as victim:
        victim.crash()
        with accept(backend) as held:
            told = signal.SIGSEGV if kind is Backend.PIPE else held.signal
            assert (held.backend, held.pid, held.signal) == (kind, victim.pid, told)
            assert not victim.is_gone(within_s=0.05)
            held_ms = held.release()
        assert victim.is_gone(PATIENCE)
        assert 50 <= held_ms == held.release()
        assert victim.process.wait() == -signal.SIGSEGV
        assert backend.refused == 0


@pytest.mark.parametrize("kind", EITHER)
def test_a_death_that_bpf_has_counted_is_let_go_and_told_nobody(here: Place, kind: Backend) -> None:
    """
    GIVEN a process that BPF has counted, and one whose pid was that of such a process before
    WHEN both crash
    THEN the first one goes at once, and only the other one arrives
    """
    with Victim(here) as counted, Victim(here) as later:
        starts = {counted.pid: start_ns(counted.pid), later.pid: start_ns(later.pid) - TICK_NS}
        counted_map = libbpf.create_array("counted", 8, max(starts) + 1)
        for pid, start in starts.items():
            libbpf.write_array(counted_map, pid, start.to_bytes(8, "little"))
        native = Native()
        native.use_bpf(-1, -1, counted_map)
        with here.backend(kind, native) as backend:
            counted.crash()
            assert counted.is_gone(PATIENCE)
            later.crash()
            with accept(backend) as held:
                assert held.pid == later.pid
                assert not later.is_gone()
        os.close(counted_map)


def start_ns(pid: int) -> int:
    """When it started, since boot, to a clock tick."""
    return procfs.parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).start_ns


@pytest.mark.parametrize("kind", EITHER)
def test_the_core_bit_is_set_although_no_core_was_taken(here: Place, kind: Backend) -> None:
    with here.backend(kind) as backend:
        child = os.posix_spawn(
            here.victim,
            ["victim"],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            ],
        )
        with accept(backend):
            pass
        assert os.waitpid(child, 0) == (child, SEGV_WITH_CORE_BIT)


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("threads", [0, 200])
def test_the_notes_at_the_head_of_the_stream(here: Place, kind: Backend, threads: int) -> None:
    """
    GIVEN a process with so many sleeping threads
    WHEN it crashes and we read no further than its notes
    THEN they are the head of an ELF core with one NT_PRSTATUS for each thread
    """
    with here.backend(kind) as backend, Victim(here, threads) as victim:
        tids = {int(task.name) for task in Path(f"/proc/{victim.pid}/task").iterdir()}
        victim.crash()
        with accept(backend) as held:
            notes = held.read_notes()
        assert victim.is_gone(PATIENCE)
    elf = ELFFile(io.BytesIO(notes))
    segment = next(elf.iter_segments("PT_NOTE"))
    assert segment["p_offset"] + segment["p_filesz"] == len(notes)
    found = [n for n in segment.iter_notes() if n["n_type"] == "NT_PRSTATUS"]
    assert len(found) == len(tids) == threads + 1
    assert {int.from_bytes(n["n_descdata"][32:36], "little") for n in found} == tids


@pytest.mark.parametrize("folder", ["deep" * 20, "a blank", "100%"])
def test_a_pipe_helper_and_a_store_that_no_core_pattern_can_name(here: Place, folder: str) -> None:
    """
    GIVEN a checkout and a store whose paths are too long, or hold what the kernel would expand
    WHEN the agent takes over by pipe, and a process crashes
    THEN it is handed over, and nothing is left behind
    """
    here.helper = build(here.run_dir.parent / folder / "checkout")
    here.run_dir = here.run_dir.parent / folder / "state" / folder
    short = set(Path("/run").glob("coreward-*"))
    with here.backend(Backend.PIPE) as backend, Victim(here) as victim:
        assert len(PATTERN.read_text()) < 100
        victim.crash()
        with accept(backend) as held:
            assert held.pid == victim.pid
        assert victim.process.wait() == -signal.SIGSEGV
    assert set(Path("/run").glob("coreward-*")) == short


def test_a_pipe_helper_that_was_upgraded_is_taken_for_what_it_is(here: Place) -> None:
    """
    GIVEN an agent that listens
    WHEN another file comes in the place of the helper, as in an upgrade, and a process crashes
    THEN it is handed over
    """
    with here.backend(Backend.PIPE) as backend, Victim(here) as victim:
        shutil.copy(here.helper, here.helper.with_suffix(".new"))
        here.helper.with_suffix(".new").rename(here.helper)
        victim.crash()
        with accept(backend) as held:
            assert held.pid == victim.pid
        assert victim.process.wait() == -signal.SIGSEGV
        assert backend.refused == 0


@pytest.mark.parametrize("kind", EITHER)
def test_fifty_crashes_at_once_all_arrive(here: Place, kind: Backend) -> None:
    with here.backend(kind) as backend, contextlib.ExitStack() as alive:
        victims = [alive.enter_context(Victim(here)) for _ in range(50)]
        for victim in victims:
            victim.crash()
        held = [alive.enter_context(accept(backend)) for _ in victims]
        assert {h.pid for h in held} == {v.pid for v in victims}
        assert not any(v.is_gone() for v in victims)
        for hand_off in held:
            hand_off.release()
        assert all(v.is_gone(PATIENCE) for v in victims)
        assert (backend.refused, backend.late) == (0, 0)


@pytest.mark.parametrize("kind", EITHER)
def test_many_that_crash_together_are_all_held(here: Place, kind: Backend) -> None:
    with here.backend(kind) as backend, contextlib.ExitStack() as alive:
        victims = [alive.enter_context(Victim(here)) for _ in range(15)]
        for victim in victims:
            victim.crash()
        held = [alive.enter_context(accept(backend)).pid for _ in victims]
        assert sorted(held) == sorted(victim.pid for victim in victims)
        assert not any(victim.is_gone() for victim in victims)


@pytest.mark.parametrize("kind", EITHER)
def test_an_impostor_is_refused_and_counted(
    here: Place, kind: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """
    GIVEN a backend that is open
    WHEN a process that is not dying connects and claims to be the kernel
    THEN its connection is closed, counted and logged; real crashes still arrive
    """
    with here.backend(kind) as backend, Victim(here) as victim:
        path = here.run_dir / ("core.sock" if kind is Backend.SOCKET else "pipe.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
            impostor.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it was refused before it spoke
                impostor.send(f"{victim.pid} {victim.pid} 11 0 0 1 0 -\n".encode())
            while not backend.refused:  # it is counted before `accept` waits for the next one
                assert backend.accept(0.1) is None
            with contextlib.suppress(ConnectionResetError):  # our line was not even read
                assert impostor.recv(1) == b""
        assert backend.refused == 1
        assert f"refused a connection to {path}: pid {os.getpid()}" in caplog.text
        victim.crash()
        with accept(backend) as held:
            assert held.pid == victim.pid


@pytest.mark.parametrize("kind", EITHER)
def test_other_users_cannot_even_connect(here: Place, kind: Backend) -> None:
    with here.backend(kind):
        path = str(next(here.run_dir.glob("*.sock")))
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.connect(path)
            except PermissionError:
                os._exit(42)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


@pytest.mark.parametrize("kind", EITHER)
def test_a_killed_agent_holds_nobody(here: Place, kind: Backend) -> None:
    """
    GIVEN an agent that holds a dying process
    WHEN the agent is killed
    THEN the process is gone within 100 ms; what comes after goes by itself
    """

    def holds_nobody() -> bool:
        with here.agent(kind, accepts=True) as agent, Victim(here) as victim:
            victim.crash()
            assert agent.stdout is not None
            assert agent.stdout.readline() == f"held {victim.pid}\n"
            assert not victim.is_gone()
            killed = time.monotonic()
            agent.kill()
            in_time = victim.gone_after(killed) < 0.1
            agent.wait()
            return goes_by_itself(here) and in_time

    assert sometimes(holds_nobody)


@needs("usual speed")
def test_an_agent_that_hangs_is_given_up(here: Place) -> None:
    with here.agent(Backend.PIPE, accepts=False):
        assert sometimes(lambda: goes_by_itself(here))


@pytest.mark.parametrize("absent", [True, False], ids=["dead agent", "hanging agent"])
def test_without_an_answer_the_pipe_helper_leaves_a_note(here: Place, absent: bool) -> None:
    """
    GIVEN an agent that was killed, or hangs and accepts nothing
    WHEN a process crashes
    THEN it is gone all the same, and the next agent finds a note of it, once
    """
    with here.agent(Backend.PIPE, accepts=False) as agent, Victim(here, user=65534) as victim:
        if absent:
            agent.kill()
            agent.wait()
        start_ticks = int(Path(f"/proc/{victim.pid}/stat").read_text().rsplit(")")[1].split()[19])
        before = int(time.time())
        victim.crash()
        assert victim.is_gone(PATIENCE)
        agent.kill()
        agent.wait()
    backend = PipeBackend(here.run_dir, here.helper)
    with contextlib.closing(backend):
        (note,), lost = backend.notes()
        assert before <= note.time_s <= time.time()
        assert note._replace(time_s=0, pidfd=None) == (
            victim.pid,
            victim.pid,
            signal.SIGSEGV,
            65534,
            65534,
            1,
            0,
            None,
            start_ticks,
        )
        assert lost == 0
        assert backend.notes() == SpooledNotes([], 0)


def test_the_helper_for_other_architectures_does_the_same(here: Place) -> None:
    """
    GIVEN the helper as it is built where there is no start-up code of its own for it
    WHEN processes crash, with an agent and without
    THEN the first is held, and of the second a note is left
    """
    build(here.helper.parent, libc=True)
    with here.agent(Backend.PIPE, accepts=True) as agent, Victim(here) as first:
        first.crash()
        assert agent.stdout is not None
        assert agent.stdout.readline() == f"held {first.pid}\n"
        assert not first.is_gone()
        agent.kill()
        agent.wait()
        with Victim(here) as second:
            second.crash()
            assert second.is_gone(PATIENCE)
    with contextlib.closing(PipeBackend(here.run_dir, here.helper)) as backend:
        (note,), lost = backend.notes()
        assert (note.pid, note.signal, lost) == (second.pid, signal.SIGSEGV, 0)


def test_a_full_spool_counts_what_it_cannot_keep(here: Place) -> None:
    with here.agent(Backend.PIPE, accepts=False) as agent, Victim(here) as victim:
        agent.kill()
        agent.wait()
        (here.run_dir / "notes").write_bytes(b"1 1 11 0 0 1 0 - -\n" * 60000)
        victim.gone_after(victim.crash())
    with contextlib.closing(PipeBackend(here.run_dir, here.helper)) as backend:
        notes, lost = backend.notes()
        assert (len(notes), lost) == (60000, 1)


@pytest.mark.parametrize("kind", EITHER)
def test_the_settings_of_a_killed_agent_can_be_put_back(here: Place, kind: Backend) -> None:
    """
    GIVEN an agent that took the settings over and was killed
    WHEN somebody restores them
    THEN they are what they were before the agent, and it says so
    """
    with here.agent(kind, accepts=False) as agent:
        assert PATTERN.read_text()[0] in "@|"
        with pytest.raises(TakeoverRefused, match="another coreward agent"):
            SettingsGuard(here.state_dir).restore()
        agent.kill()
        agent.wait()
    said = SettingsGuard(here.state_dir).restore()
    expected = ["kernel.core_pattern is 'core' again", "kernel.core_pipe_limit is '0' again"]
    assert said == (expected if kind is Backend.PIPE else expected[:1])
    assert (PATTERN.read_text(), LIMIT.read_text()) == ("core\n", "0\n")
    assert SettingsGuard(here.state_dir).restore() == []


def test_another_crash_handler_is_not_replaced_unasked(here: Place) -> None:
    """
    GIVEN the handler of somebody else
    WHEN a backend is opened without leave to replace it
    THEN it refuses, names the other, and has changed nothing; with leave it works, and gives back
    """
    other = "|/usr/lib/other/handler %p"
    PATTERN.write_text(other)
    guard = SettingsGuard(here.state_dir)
    for kind in (Backend.AUTO, *BOTH):
        with pytest.raises(TakeoverRefused, match="/usr/lib/other/handler %p"):
            open_backend(kind, here.run_dir, guard, Native(), False, here.helper)
        assert PATTERN.read_text() == other + "\n"
    with open_backend(Backend.AUTO, here.run_dir, guard, Native(), True, here.helper) as backend:
        assert PATTERN.read_text() == f"{backend.pattern}\n"
    assert (PATTERN.read_text(), LIMIT.read_text()) == (other + "\n", "0\n")


def test_auto_takes_what_works(here: Place) -> None:
    """
    GIVEN a directory whose name no coredump socket may have, and no helper
    WHEN the best backend is asked for
    THEN none is opened, with the reasons; by name it is an error; the settings are untouched
    """
    unusable = here.run_dir / "a b"
    guard = SettingsGuard(here.state_dir)
    backend = open_backend(Backend.AUTO, unusable, guard, Native(), False, here.run_dir / "absent")
    assert isinstance(backend, NoBackend)
    assert "socket: " in backend.reason and "pipe: " in backend.reason
    with pytest.raises(HoldError, match=r"hold.backend: pipe does not work here: .*make setup"):
        open_backend(Backend.PIPE, unusable, guard, Native(), False, here.run_dir / "absent")
    assert PATTERN.read_text() == "core\n"


def test_a_pattern_that_brings_nothing_is_found_out_at_once(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    GIVEN a pipe helper that the kernel can start, and that does not speak to us
    WHEN the pipe backend is opened
    THEN the proof fails as soon as the child is gone, and the settings are as before
    """
    here.helper.unlink()
    shutil.copy("/bin/true", here.helper)
    monkeypatch.setattr(backends, "_PROBE_TIMEOUT_S", 3600.0)
    with pytest.raises(HoldError, match="a crash did not arrive"):
        open_backend(
            Backend.PIPE,
            here.run_dir,
            SettingsGuard(here.state_dir),
            Native(),
            False,
            here.helper,
        )
    assert (PATTERN.read_text(), LIMIT.read_text()) == ("core\n", "0\n")
