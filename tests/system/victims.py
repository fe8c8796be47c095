"""Build and run the crashing programs of `tests/victims` and `demo`.

    with running("null_main", cwd=tmp_path) as victim:   # started, and has printed "ready"
        victim.go()                                      # now it dies
        assert victim.wait() == -signal.SIGSEGV

Programs are built on first use, into a folder of `build/` that is named for the contents of all
sources, so a changed source never meets an old binary. It waits on events only: a victim that does
not come up or does not die in time is a failed test.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "victims"
# How many times slower than a usual machine this one is: tests/kernels sets it for its guests.
SLOWNESS = float(os.environ.get("COREWARD_TEST_SLOWNESS", "1"))
# Seconds until what must happen counts as stuck. No test should need them: a busy machine might.
# seconds; with half of a core twenty crashes are explained in two minutes, and beside a storm of
# kills a record comes some minutes late
PATIENCE = float(os.environ.get("COREWARD_TEST_PATIENCE", "900"))


class Stuck(AssertionError):
    """A victim did not do in time what it was waited for."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Stuck(what)
        time.sleep(0.0005)


@functools.cache
def build_folder() -> Path:
    """Where the built programs go: `build/victims-HASH`."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.iterdir(), *(ROOT / "demo").glob("*.c")]):
        if source.is_file():
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return ROOT / "build" / f"victims-{digest.hexdigest()[:12]}"


def deep_files(folder: Path, count: int) -> list[str]:
    """Small files with paths of 3,800 bytes, almost the longest that there are."""
    while len(str(folder)) < 3800 - 256:
        folder /= "d" * min(250, 3800 - 256 - len(str(folder)))
    folder.mkdir(parents=True)
    names = [str(folder / str(i).rjust(3799 - len(str(folder)), "f")) for i in range(count)]
    for name in names:
        Path(name).write_bytes(b"x" * 4096)
    return names


@functools.cache
def build(name: str) -> Path:
    """Build one program (`null_main`, `Crash`, ...) and return its file."""
    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:  # two test runs may build at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-C", str(SOURCES), f"OUT={folder}", name]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return folder / name


def command_of(name: str, *arguments: str) -> list[str]:
    """The command line of a victim; scripts are run by their interpreter."""
    if name.endswith(".py"):
        return ["/usr/bin/python3", str(SOURCES / name), *arguments]
    if name.endswith(".js"):
        return ["node", str(SOURCES / name), *arguments]
    if (SOURCES / f"{name}.java").exists():
        # no report file: the JVM's own hs_err would land in the current folder
        quiet = ["-Xmx64m", "-XX:+SuppressFatalErrorMessage"]
        quiet = quiet[:1] if "report" in arguments else quiet
        return ["java", *quiet, "-cp", str(build(name).parent), name, *arguments]
    return [str(build(name)), *arguments]


class Victim:
    """A started victim. `pid` is that of the started program (for `namespace`: of its parent)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Until it has printed its line "ready"."""
        output = _pipe(self.process.stdout)
        seen = b""
        while b"ready\n" not in seen:
            if not select.select([output], [], [], timeout)[0]:
                raise Stuck(f"{self.process.args!r} did not say that it is ready, but {seen!r}")
            more = os.read(output.fileno(), 4096)
            if not more:
                raise Stuck(f"{self.process.args!r} ended before it was ready, after {seen!r}")
            seen += more

    def go(self) -> None:
        """Let it die."""
        stdin = _pipe(self.process.stdin)
        stdin.write(b"\n")
        stdin.flush()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, or minus its signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise Stuck(f"{self.process.args!r} did not die") from error


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end


@contextlib.contextmanager
def killed_with(name: str) -> Iterator[None]:
    """At the end every process of this victim's program is killed, also those that it started."""
    try:
        yield
    finally:
        program = str(build(name))
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "exe") == program:
                    os.kill(int(folder.name), signal.SIGKILL)


@contextlib.contextmanager
def running(
    name: str,
    *arguments: str,
    cwd: Path,
    core_limit: int = resource.RLIM_INFINITY,
    uid: int | None = None,
    file: Path | None = None,
    cgroup: Path | None = None,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[Victim]:
    """A victim that is ready to die; killed and reaped at the end, if it still lives.

    core_limit: RLIMIT_CORE in bytes. uid: run as this user. file: run this copy of the program.
    cgroup: folder of the one that it is in from its first page on.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (core_limit, core_limit))
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")  # 0: the writer itself

    command = [str(file), *arguments] if file else command_of(name, *arguments)
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PWD": str(cwd)},  # as a shell's `cd` leaves it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        preexec_fn=limit,  # noqa: PLW1509  (tests start victims from one thread)
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    ) as process:
        victim = Victim(process)
        try:
            victim.wait_ready()
            yield victim
        finally:
            if process.poll() is None:
                process.kill()


def descendants(pid: int) -> Iterator[int]:
    """Its children, their children, and so on."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from descendants(int(child))


def wish(victim: Victim, what: str) -> None:
    """Have it do that, and wait until it has."""
    assert victim.process.stdin is not None and victim.process.stdout is not None
    victim.process.stdin.write(what.encode())
    assert victim.process.stdout.read(1) == what.encode()
