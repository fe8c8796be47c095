"""Crash handlers of Debian, run from where they were unpacked: systemd-coredump, minicoredumper.

The kernel starts `relay`, which starts them with their libraries, waits, and reports their CPU
time; this adds 0.7 ms to each of their runs. Patterns, limits and settings are those
that the packages install.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.launch import UNLIMITED
from bench.model import MIB, Case, Sample, Shot
from bench.packages import check_links, libraries, unpacked
from bench.peers import Session, Unavailable, completed_ms, disk_of, scratch
from bench.programs import BUILD, build
from tests.system.settings import kernel_settings

_PATTERN_MAX = 127  # bytes: CORENAME_MAX_SIZE of <linux/binfmts.h>, less the NUL
_PATIENCE_S = 600.0


class _Report(NamedTuple):
    """A line of the relay."""

    by: str
    cpu_ms: float
    status: int


class _Reports:
    """The fifo that relays write to. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def take(self, count: int) -> list[_Report]:
        """The next reports. Raises TimeoutError."""
        while self._rest.count(b"\n") < count:
            if not select.select([self._fd], [], [], _PATIENCE_S)[0]:
                raise TimeoutError(f"{self._path.name}: a crash handler did not end")
            self._rest += os.read(self._fd, 4096)
        *lines, self._rest = self._rest.split(b"\n", count)
        words = [line.decode().split() for line in lines]
        return [_Report(by, int(cpu) / 1e3, int(status)) for by, cpu, status in words]

    def __enter__(self) -> _Reports:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._path.unlink(missing_ok=True)


class _RelayedSession:
    core_limit = UNLIMITED

    def __init__(
        self,
        name: str,
        folder: Path,
        reports: _Reports,
        expected: int,
        outputs: Callable[[Shot], list[Path]],
    ) -> None:
        self.folder = folder
        self._name, self._reports, self._expected = name, reports, expected
        self._outputs = outputs  # the files that it made of a death

    def before(self, case: Case) -> None:
        """Nothing to prepare."""

    def after(self, case: Case, shot: Shot) -> Sample:
        reports = self._reports.take(self._expected)
        bad = [f"{r.by} part ended with {r.status:#x}" for r in reports if r.status]
        files = self._outputs(shot)
        sample = Sample(
            peer=self._name,
            case=case.name,
            round=0,
            wait_ms=shot.wait_ms,
            complete_ms=completed_ms(shot, *files) if files else None,
            disk=disk_of(*files),
            cpu_ms=shot.cpu_ms + sum(report.cpu_ms for report in reports),
            note="; ".join([*bad, *([] if files else ["wrote nothing"])]),
        )
        for file in files:
            file.unlink()
        return sample


def _relay(name: str, program: Path, root: Path, extra: str, report: Path) -> Path:
    return build(
        "relay",
        f"relay-{name}",
        PROGRAM=str(program),
        LIBRARIES=libraries(root),
        EXTRA=extra,
        REPORT=str(report),
    )


def _pattern(relay: Path, arguments: str) -> str:
    pattern = f"|{relay} {arguments}"
    if len(pattern) > _PATTERN_MAX:
        raise Unavailable(f"the checkout's path is too long for a core_pattern: {pattern!r}")
    return pattern


class SystemdCoredump:
    """systemd-coredump as systemd runs it: a helper, and a service behind a socket."""

    name = "systemd-coredump"
    about = "Debian's, defaults (zstd); no journal here, no sandbox of its unit"
    STORE = Path("/var/lib/systemd/coredump")
    SOCKET = Path("/run/systemd/coredump")

    def rounds(self, case: Case) -> int:
        if case.resident > 4096 * MIB:
            return 0
        if case.resident > 512 * MIB:
            return 1
        return min(case.rounds, 5 if case.resident <= 64 * MIB else 3)

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        root = unpacked("systemd-coredump", "libsystemd-shared")
        program = root / "lib/systemd/systemd-coredump"
        check_links(program, root)
        if self.SOCKET.exists():
            raise Unavailable(f"{self.SOCKET} exists: systemd's own service is active")
        report = BUILD / "systemd.fifo"
        relay = _relay("sd", program, root, "", report)
        pattern = _pattern(relay, "%P %u %g %s %t 9223372036854775808 %h %d")
        settings = {"core_pattern": pattern, "core_pipe_limit": "16", "suid_dumpable": "2"}
        with (
            _made(self.STORE),
            _only_for_now(self.STORE),
            _made(self.SOCKET.parent),
            scratch() as folder,
            _Reports(report) as reports,
            self._service(relay),
            kernel_settings(**settings),
        ):
            yield _RelayedSession(self.name, folder, reports, 2, self._outputs)

    @contextlib.contextmanager
    def _service(self, relay: Path) -> Iterator[None]:
        command = [str(relay), "--listen", str(self.SOCKET)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise Unavailable(f"{self.SOCKET} cannot be listened on")
                yield
            finally:
                process.terminate()
                process.wait()
                self.SOCKET.unlink(missing_ok=True)

    def _outputs(self, shot: Shot) -> list[Path]:
        # core.COMM.UID.BOOT.PID.TIME[.zst]
        return [
            file
            for file in self.STORE.glob("core.*")
            if file.name.split(".")[4:5] == [str(shot.pid)]
        ]


class Minicoredumper:
    """minicoredumper with its package's recept: stacks only, a gzipped tar."""

    name = "minicoredumper"
    about = "Debian's, its default recept: stacks, auxv, thread list; no heap"
    PATTERN = "%P %u %g %s %t %h %e"

    def rounds(self, case: Case) -> int:
        return case.rounds

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        root = unpacked("minicoredumper", "libjson-c5", "libelf1")
        program = root / "usr/sbin/minicoredumper"
        check_links(program, root)
        report = BUILD / "mini.fifo"
        with scratch() as folder, _Reports(report) as reports:
            config = self._config(root, folder)
            relay = _relay("mc", program, root, str(config), report)
            pattern = _pattern(relay, self.PATTERN)
            with kernel_settings(core_pattern=pattern, core_pipe_limit=str(0x7FFFFFFF)):
                yield _RelayedSession(self.name, folder, reports, 1, _files_below(folder / "out"))

    def _config(self, root: Path, folder: Path) -> Path:
        """The package's configuration, with places of ours."""
        installed = root / "etc/minicoredumper"
        config = json.loads((installed / "minicoredumper.cfg.json").read_text())
        config["base_dir"] = str(folder / "out")
        for watch in config["watch"]:
            watch["recept"] = str(installed / watch["recept"])
        (folder / "out").mkdir()
        path = folder / "minicoredumper.cfg.json"
        path.write_text(json.dumps(config))
        return path


def _files_below(folder: Path) -> Callable[[Shot], list[Path]]:
    return lambda _: [path for path in folder.rglob("*") if path.is_file()]


@contextlib.contextmanager
def _only_for_now(folder: Path) -> Iterator[None]:
    """Files that come to be in `folder` meanwhile are removed: others die on this machine, too."""
    before = set(folder.iterdir())
    try:
        yield
    finally:
        for file in set(folder.iterdir()) - before:
            file.unlink()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that is there; removed at the end if it was not there before."""
    missing = next((p for p in [*reversed(folder.parents), folder] if not p.exists()), None)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if missing is not None:
            shutil.rmtree(missing)
