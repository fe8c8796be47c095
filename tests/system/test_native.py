"""The native way to a release: it gathers what Python gathers, and says no where it must."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import HoldError
from collector.flow.gather import Gathered, gather
from collector.flow.native import Native
from collector.hold.build import build_library
from collector.hold.coredump_socket import SocketBackend
from collector.probe import Probe, decode_threads, open_probe
from tests.system.agents import agent
from tests.system.needs import by_socket, needs
from tests.system.settings import kernel_settings
from tests.system.victims import Victim, build, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNLIMITED = "defaults: {limit: none}\n"
ROOM = 1 << 40  # bytes


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    pins = Path(f"/sys/fs/bpf/coresnap-test-native-{os.getpid()}")
    with open_probe("core", pins) as opened:
        yield opened
        opened.unpin()


@pytest.fixture
def native(probe: Probe) -> Native:
    return Native(*probe.iterators)


class Crashing:
    """A coredump socket, for one crash."""

    def __init__(self, folder: Path) -> None:
        self.backend = SocketBackend(folder / "core.sock")

    def __enter__(self) -> Crashing:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    def wait(self) -> None:
        assert select.select([self.backend.fileno()], [], [], 60)[0]


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Crashing]:
    with kernel_settings() as settings, Crashing(tmp_path) as one:
        settings.write("core_pattern", one.backend.pattern)
        yield one


def stable(gathered: Gathered) -> dict[str, object]:
    """What does not change from one look at a held process to the next."""
    assert gathered.threads is not None and gathered.mappings is not None
    text = gathered.dying.text
    return {
        "stat": text.stat.split()[:2],
        # its state is R until it has come to rest in the kernel's wait for us
        "status": re.sub(rb"(?m)^(State:.*|\w*ctxt\w*:.*|FDSize:.*|.* kB)\n", b"", text.status),
        "texts": (text.cmdline, text.auxv, text.cgroup, text.coredump_filter, text.maps),
        "threads": [(t.tid, t.regs, t.xstate, t.name) for t in decode_threads(gathered.threads)],
        "mappings": bytes(gathered.mappings),
        "patches": sorted((patch.address, patch.data) for patch in gathered.patches),
        "shared": sorted((a, os.fstat(fd).st_ino) for a, fd in gathered.shared_fds.items()),
        "files": [
            fd is not None and os.readlink(f"/proc/self/fd/{fd}")
            for fd in (
                gathered.dying.mem_fd,
                gathered.dying.pagemap_fd,
                gathered.dying.root_fd,
                gathered.dying.exe_fd,
                gathered.dying.mount_fd,
            )
        ],
        "core_limit": gathered.dying.core_limit,
    }


@needs("socket hand-off")
@pytest.mark.parametrize(
    ("victim", "arguments"),
    [("mixed", ("mapped.bin",)), ("robust", ("600",)), ("threads", ("600",)), ("null_main", ())],
)
def test_it_gathers_what_python_gathers(
    probe: Probe,
    native: Native,
    crashing: Crashing,
    tmp_path: Path,
    victim: str,
    arguments: tuple[str, ...],
) -> None:
    # GIVEN a process that is held, WHEN both gather it
    with running(victim, *arguments, cwd=tmp_path) as process:
        process.go()
        crashing.wait()
        handoff = crashing.backend.accept()
        assert handoff is not None
        with handoff:
            by_python = gather(handoff, probe)
            by_native = native.gather(handoff)
            # THEN they have the same, and it is held still: nobody has allowed its release
            assert by_native is not None and by_native.pin is None
            assert stable(by_native) == stable(by_python)
            assert process.process.poll() is None
            by_python.close()
            by_native.close()


def take(native: Native, crashing: Crashing, victim: Victim) -> Gathered:
    """Let it crash, and have it taken."""
    victim.go()
    accepted = native.take_socket(crashing.backend.block())
    assert accepted is not None and accepted.gathered is not None
    if accepted.gathered.pin is None:
        accepted.handoff.release()
    assert victim.wait() == -signal.SIGSEGV
    return accepted.gathered


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
        # AND what it has let go is known by its pid, and counts until somebody takes it over
        assert native.has_in_hand(victim.pid) is at_once
        assert native.fresh() == ((1, gathered.size) if at_once else (0, 0))
        if at_once:
            assert 1 << 12 < gathered.size < 1 << 22
            native.entered(gathered)
            native.joined(victim.pid)
        assert native.fresh() == (0, 0) and not native.has_in_hand(victim.pid)
        gathered.close()


@needs("socket hand-off")
def test_a_process_in_a_cgroup_with_a_limit_is_left_to_python(
    native: Native, crashing: Crashing, tmp_path: Path
) -> None:
    # GIVEN a process whose memory cgroup has a limit
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else v2) / f"coresnap-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
    group.mkdir()
    try:
        if not limit.exists():
            pytest.skip("no memory controller")
        limit.write_text(str(1 << 30))
        native.allow(instant=True, max_pins=2, max_pinned=ROOM)
        with running("null_main", cwd=tmp_path) as victim:
            (group / "cgroup.procs").write_text(str(victim.pid))
            gathered = take(native, crashing, victim)
            # THEN it is held, for whoever can weigh that
            assert gathered.pin is None
            gathered.close()
    finally:
        group.rmdir()


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


def test_a_library_of_another_version_is_refused(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(path: Path | None) -> None:
        monkeypatch.setattr("collector.flow.native.find", lambda name: path)

    source = tmp_path / "other.c"
    source.write_text("unsigned long coresnap_sizes(void) { return 1; }\n")
    other = tmp_path / "other.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", other, source], check=True)
    for path, why in [
        (None, "was not built; run `make setup`"),
        (other, "is of another version"),
        (source, "build it with `make setup`"),
    ]:
        found(path)
        with pytest.raises(HoldError, match=why):
            Native(*probe.iterators)
    found(build_library(tmp_path))
    Native(*probe.iterators)


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
