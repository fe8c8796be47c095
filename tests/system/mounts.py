"""A `coreward mount` for tests, and readers of its files that are processes of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.system.snapshots import COMMAND, NOBODY
from tests.system.victims import PATIENCE, ROOT, wait_until

# Opens its argument and says so; for each address in its input it says the word that is there.
_READER = """
import sys
from collector.elfcore.reader import CoreFile
core = CoreFile(sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    print(int.from_bytes(core.read(int(line), 8), "little"), flush=True)
"""


class Mount:
    """A running mount."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], log: Path) -> None:
        self.folder, self.process, self._log = folder, process, log

    def live(self, pid: int, label: str | None = None) -> Path:
        return self.folder / "live" / (f"{pid}.{label}.core" if label else f"{pid}.core")

    def crash(self, identity: str) -> Path:
        return self.folder / "crashes" / f"{identity}.core"

    @property
    def log(self) -> str:
        """What it has said on standard error."""
        return self._log.read_text()

    def holders(self) -> list[int]:
        """The processes that hold snapshots."""
        path = Path(f"/proc/{self.process.pid}/task")
        children = [
            pid for task in path.iterdir() for pid in (task / "children").read_text().split()
        ]
        return [int(pid) for pid in children if _holds(Path("/proc", pid))]

    def wait_without_holders(self) -> None:
        """Until nothing is held any more."""
        wait_until(lambda: not self.holders(), "a snapshot is still held")


def _holds(process: Path) -> bool:
    """Whether it is a holder with a job, and no zombie."""
    with contextlib.suppress(OSError):
        name, command = (process / "comm").read_text(), (process / "cmdline").read_bytes()
        return name.startswith("hold ") and command != b""
    return False


@contextlib.contextmanager
def mount(tmp_path: Path, *options: str, store: Path | None = None) -> Iterator[Mount]:
    """A mount in `tmp_path`/mount, which is gone at the end."""
    folder, log = tmp_path / "mount", tmp_path / "mount.log"
    folder.mkdir(exist_ok=True)
    where = ["--store", str(store)] if store else ["--store", str(tmp_path / "no-store")]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "mount", str(folder), *where, *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE)[0]
        assert process.stdout.readline() == f"{folder}: mounted\n", log.read_text()
        yield Mount(folder, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()
            if os.path.ismount(folder):
                subprocess.run(["umount", "-l", str(folder)], check=True)


class Reader:
    """Another process that has a core open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def word(self, address: int) -> int:
        """The word at an address, as it has it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{address}\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0]
        return self._process.stdout.readline().strip()

    def wait_open(self) -> None:
        assert self._line() == "open"


@contextlib.contextmanager
def reader(path: Path) -> Iterator[Reader]:
    """A process that has opened this core, until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", _READER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        found = Reader(process)
        try:
            found.wait_open()
            yield found
        finally:
            process.kill()


def as_nobody(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the shell as a user who has no rights."""
    return subprocess.run(
        ["sh", "-c", command],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
