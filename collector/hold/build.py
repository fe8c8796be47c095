"""Build the pipe helper: `python -m collector.hold.build OUTDIR` makes OUTDIR/coresnap-pipe.

Run when the project is set up; the agent only uses what was built. x86-64 gets a program without
libc, which starts and ends in 0.09 ms; other architectures a static one with it, 0.37 ms.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from collector.errors import HoldError, UsageError

NAME = "coresnap-pipe"
SOURCE = Path(__file__).parent / "pipe_helper.c"

_COMMON = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")
_FREESTANDING = (
    *("-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    # no hidden calls of memcpy or strlen
    *("-fno-tree-loop-distribute-patterns", "-fno-builtin"),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,norelro"),
)


def build(directory: Path, compiler: str = "gcc", libc: bool | None = None) -> Path:
    """Compile the helper into `directory`; returns its path. Raises HoldError with the errors.

    libc: None for what suits the architecture.
    """
    if libc is None:
        libc = platform.machine() != "x86_64"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / NAME
    partial = directory / f"{NAME}.{os.getpid()}"
    how = ("-DCORESNAP_LIBC",) if libc else _FREESTANDING
    command = [compiler, *_COMMON, *how, "-o", str(partial), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HoldError(f"cannot run {compiler}: {error.strerror}; install a C compiler") from error
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise HoldError(f"cannot compile {SOURCE}: {done.stderr.strip()}")
    partial.chmod(0o755)
    partial.rename(target)  # an agent or a kernel that uses the old one is not disturbed
    return target


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UsageError("usage: python -m collector.hold.build OUTDIR")
        print(build(Path(sys.argv[1])))
    except (HoldError, UsageError) as failure:
        print(f"coresnap: {failure}", file=sys.stderr)
        sys.exit(failure.exit_status)
