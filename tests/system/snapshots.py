"""Run the verbs that take snapshots, and ask debuggers of their cores."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from collector.elfcore.reader import CoreFile
from collector.snapshot.stop import Why
from tests.system.victims import PATIENCE, ROOT

COMMAND = [sys.executable, "-m", "collector"]
NOBODY = 65534
CHUNK = 1 << 20
WORD = 8
_TRIES = 10
NO_32_BIT = "it is a 32-bit process, and only of 64-bit ones there are cores and backtraces"


def coreward(*words: object, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `user` without groups of its own. A snapshot for which a busy
    machine stopped a thread too late, as it says, is taken again.
    """
    took = _run(words, user)
    for _ in range(_TRIES):
        if Why.LATE not in took.stdout + took.stderr:
            break
        if "-o" in words and (file := Path(str(words[words.index("-o") + 1]))).is_file():
            file.unlink()
        took = _run(words, user)
    return took


def _run(words: Sequence[object], user: int | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


@contextlib.contextmanager
def nobodys_folder() -> Iterator[Path]:
    """A folder for files of the user NOBODY (pytest's own are root's alone)."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def done(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """A command that went well."""
    assert process.returncode == 0, process.stderr
    return process


def refused(process: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed with status 1 and wrote nothing else."""
    lines = process.stderr.splitlines()
    assert (process.returncode, process.stdout, len(lines)) == (1, "", 1), process
    return lines[0].removeprefix("coreward: ")


def live_core(pid: int, path: Path) -> Path:
    """A core of a living process, by gdb's gcore."""
    subprocess.run(
        ["gcore", "-o", str(path), str(pid)],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return path.with_name(f"{path.name}.{pid}")


def gdb(core: Path, executable: Path, *commands: str) -> str:
    """What gdb prints of a core."""
    words = [word for command in commands for word in ("-ex", command)]
    command = ["gdb", "-batch", "-nx", *words, str(executable), "-c", str(core)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# Which of them depends on the CPU: gdb 13 knows no AMX, for one.
XSTATE_WARNINGS = ("warning: Section", "warning: Unexpected size of section `.reg-xstate")


def backtraces(core: Path, executable: Path) -> dict[int, str]:
    """`thread apply all bt` by thread id, without what gdb 13 dislikes about xstate in any core
    but its own."""
    found = {}
    for part in gdb(core, executable, "thread apply all bt").split("\nThread ")[1:]:
        head, _, frames = part.partition("\n")
        lwp = re.search(r"LWP (\d+)", head)
        assert lwp is not None
        lines = (line for line in frames.splitlines() if not line.startswith(XSTATE_WARNINGS))
        found[int(lwp[1])] = "\n".join(lines).strip()
    return found


def executable_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").readlink()


def dumped(core: CoreFile) -> list[tuple[int, int]]:
    """The ranges of memory that a core holds."""
    found = ((p.segment.vaddr, p.segment.vaddr + p.segment.filesz) for p in core.segments)
    return sorted((start, end) for start, end in found if start < end)


def common(one: CoreFile, two: CoreFile) -> Iterator[tuple[int, int]]:
    """Ranges that both hold, in pieces."""
    others = dumped(two)
    for start, end in dumped(one):
        for low, high in others:
            at, last = max(start, low), min(end, high)
            while at < last:
                yield at, min(at + CHUNK, last)
                at += CHUNK


def differences(one: CoreFile, two: CoreFile, ignored: Sequence[tuple[int, int]] = ()) -> list[str]:
    """The addresses of the words that both hold and that are different."""
    found = []
    for start, end in common(one, two):
        a, b = one.read(start, end - start), two.read(start, end - start)
        if a != b:
            found += [
                start + i for i in range(0, len(a), WORD) if a[i : i + WORD] != b[i : i + WORD]
            ]
    return [f"{at:#x}" for at in found if not any(low <= at < high for low, high in ignored)]


def holds(core: CoreFile, address: int) -> bool:
    """Whether a core has this byte of memory."""
    return any(start <= address < end for start, end in dumped(core))


def functions(frames: Sequence[str]) -> list[str]:
    """The names in gdb's frames."""
    return [m[1] for line in frames if (m := re.match(r"#\d+ +(?:0x\w+ in )?(\w+) \(", line))]
