"""A mixed load: all that happens on an unhappy host, over and over, until it is told to end.

Each kind of trouble goes its own way, in a thread: crashes of all kinds, snapshots, storms of kills
and attacks by other users, a disk that fills and empties. What has died by it is noted, so that it
can be looked for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.model import MIB
from tests.system.agents import COMMAND, RunningAgent
from tests.system.memory_cgroups import has_memory_controller, memory_cgroup
from tests.system.victims import build

STORM = 2000  # kills at a time, by a program's own parent
_STORM_UID, _ATTACKER_UID = 65533, 65532
_PATIENCE_S = 120.0
_SHARED_S = 5  # for how long an attacker keeps the lock of its memory
_IDLE = 24  # connections, more than the agent serves
_SPARSE_MIB = 4 << 20  # of a file without contents
_ENTER = 'echo 0 > "$0/cgroup.procs" && exec "$@"'

Way = Generator[float, None, None]  # gives the seconds until it goes on

# (victim, arguments): each says that it is ready, and dies when it is told to
CRASHES: tuple[tuple[str, ...], ...] = (
    ("null_main",),
    ("assertion",),
    ("stack_overflow",),
    ("double_free",),
    ("divide",),
    ("uncaught",),
    ("robust",),
    ("heap_abort", "32"),
    ("resident", "128", "16", "mixed"),
    ("threads", "300"),
    ("mappings", "5000"),
)
SHARED = ("vfork", "clone")  # how the dying process came by the memory of another
LIMITED = ("resident", "48", "4", "mixed")
LIMIT = 80 * MIB  # of its memory cgroup, which has no room for a successor
TARGET = ("live_target", "report", "memory:32", "writer:1", "futex:4", "epoll:2")
LOOKS: tuple[tuple[str, ...], ...] = (
    ("snapshot",),
    ("snapshot", "--mode", "nonstop"),
    ("snapshot", "--mode", "threads"),
    ("gcore",),
    ("sample", "--every", "200ms", "--for", "1s"),
)


class Victim(NamedTuple):
    process: subprocess.Popen[bytes]
    pid: int

    def line(self) -> bytes:
        """Raises subprocess.TimeoutExpired, as `die` does."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], _PATIENCE_S)[0]:
            raise subprocess.TimeoutExpired(self.process.args, _PATIENCE_S)
        return self.process.stdout.readline()

    def die(self) -> None:
        """Tell it to, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.wait(_PATIENCE_S)


class Load:
    """The troubles of one agent, as long as the context is entered.

    deaths: pids of those that died. stormed: how many more did in storms. done: rounds by name.
    failed: what somebody was refused, and why, by how often. stuck: what did not end.
    """

    def __init__(self, agent: RunningAgent, folder: Path) -> None:
        self._agent = agent
        self._folder = folder  # of the victims; others may enter it
        self._end = threading.Event()
        self._may_go = threading.Event()
        self._may_go.set()
        self.deaths: list[int] = []
        self.stormed = 0
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.stuck: list[str] = []
        ways = (self._crash, self._look, self._storm, self._attack, self._fill)
        self._threads = [threading.Thread(target=self._go, args=(way,)) for way in ways]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._may_go.set()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing new is begun meanwhile."""
        self._may_go.clear()
        try:
            yield
        finally:
            self._may_go.set()

    def _go(self, way: Callable[[], Way]) -> None:
        """Along one way until the end; from its beginning again where it went wrong."""
        pause = 0.0
        while not self._end.wait(pause):
            pause = 1.0
            try:
                with contextlib.closing(way()) as steps:
                    for pause in steps:
                        if self._end.wait(pause):
                            return
                        self._may_go.wait()
            except subprocess.TimeoutExpired as error:
                self.stuck.append(str(error))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self.failed[f"{way.__name__.strip('_')}: {error}"] += 1

    # ---- crashes of all kinds

    def _crash(self) -> Way:
        for number in itertools.count():
            for words in CRASHES:
                self._let_die(*words)
                yield 0.2
            self._let_die_in_shared_memory(SHARED[number % len(SHARED)])
            yield 0.2
            if has_memory_controller():
                with memory_cgroup(LIMIT) as group:
                    self._let_die(*LIMITED, prefix=("sh", "-c", _ENTER, str(group.path)))
                yield 0.2
            with self._ready("null_main") as victim:
                victim.process.kill()
                victim.process.wait(_PATIENCE_S)
                self._died(victim.pid, "killed")

    def _let_die(self, *words: str, prefix: tuple[str, ...] = (), uid: int | None = None) -> None:
        with self._ready(*words, prefix=prefix, uid=uid) as victim:
            victim.die()
            self._died(victim.pid, words[0])

    def _let_die_in_shared_memory(self, how: str) -> None:
        with self._ready("shared_memory", how) as parent:
            assert parent.process.stdin is not None
            parent.process.stdin.write(b"\n")
            self._died(int(parent.line()), how)
            parent.process.stdin.close()
            parent.process.wait(_PATIENCE_S)

    def _died(self, pid: int, kind: str) -> None:
        self.deaths.append(pid)
        self.done[kind] += 1

    @contextlib.contextmanager
    def _ready(
        self, name: str, *arguments: str, prefix: tuple[str, ...] = (), uid: int | None = None
    ) -> Iterator[Victim]:
        """A victim that is ready to die; killed at the end if it lives."""
        command = ["prlimit", "--core=unlimited", *prefix, str(build(name)), *arguments]
        with subprocess.Popen(
            command,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        ) as process:
            victim = Victim(process, process.pid)
            try:
                if victim.line() != b"ready\n":
                    raise OSError(f"{name} does not come up")
                yield victim
            finally:
                if process.poll() is None:
                    process.kill()

    # ---- looks at what lives

    def _look(self) -> Way:
        while True:
            with self._ready(*TARGET) as target:
                for words in LOOKS:
                    self._verb(*words, str(target.pid))
                    yield 1.0
                target.process.kill()
                target.process.wait(_PATIENCE_S)
                self._died(target.pid, "watched")
            (self._folder / f"core.{target.pid}").unlink(missing_ok=True)  # gcore's

    def _verb(self, *words: str) -> None:
        done = subprocess.run(
            [*COMMAND, words[0], "--store", str(self._agent.store), *words[1:]],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        self.done[" ".join(words[:3] if "--mode" in words else words[:1])] += 1
        if done.returncode:
            self.failed[f"{words[0]}: {_plain(done.stderr)}"] += 1

    # ---- others mean ill

    def _storm(self) -> Way:
        while True:
            command = [str(build("storm")), str(STORM)]
            subprocess.run(command, user=_STORM_UID, check=True, timeout=_PATIENCE_S)
            self.stormed += STORM
            self.done["storm"] += 1
            yield 10.0

    def _attack(self) -> Way:
        sparse = self._folder / "sparse"
        while True:
            sparse.touch(0o666)
            os.truncate(sparse, _SPARSE_MIB * MIB)
            os.chown(sparse, _ATTACKER_UID, _ATTACKER_UID)
            self._let_die("sparse", "file", str(_SPARSE_MIB), str(sparse), uid=_ATTACKER_UID)
            yield 2.0
            self._let_die("sparse", "anon", str(_SPARSE_MIB), "1000", uid=_ATTACKER_UID)
            yield 2.0
            self._let_die("shared_lock", str(_SHARED_S), uid=_ATTACKER_UID)
            yield _SHARED_S
            self._let_die("waiting")
            yield 2.0
            if Path("/dev/fuse").exists():
                self._let_die_on_fuse()
                yield 2.0
            with contextlib.ExitStack() as idle:
                for _ in range(_IDLE):
                    idle.enter_context(socket.create_connection(("127.0.0.1", self._agent.port)))
                self.done["idle connections"] += 1
                yield 5.0

    def _let_die_on_fuse(self) -> None:
        mounted = self._folder / "mounted"
        mounted.mkdir(exist_ok=True)
        try:
            self._let_die("fuse_private", str(mounted))
        finally:
            subprocess.run(["umount", "-f", "-l", str(mounted)], check=False)

    # ---- the disk

    def _fill(self) -> Way:
        """Full for some seconds, then with what is older than some seconds removed."""
        filler = self._agent.store / "filler"
        while True:
            yield 10.0
            try:
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(bytes(MIB)) == MIB:
                        pass
                self.done["disk full"] += 1
                yield 5.0
            finally:
                filler.unlink(missing_ok=True)
            self._verb("rm", "--older-than", "20s")


def _plain(message: str) -> str:
    """Its last line, without what differs each time."""
    last = (message.strip().splitlines() or ["no message"])[-1]
    return "".join("#" if letter.isdigit() else letter for letter in last)
