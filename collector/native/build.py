"""Build the native parts: `python -m collector.native.build OUTDIR` makes coreward-pipe, the pipe
helper, coreward-handoff.so, the agent's way from the kernel's hand-off to the release,
coreward-copy, which copies the memory of a process that waits, and coreward-cpu.so, which asks the
CPU.

Run when the project is set up; the agent only uses what was built. x86-64 gets a helper without
libc, which starts and ends in 0.09 ms; other architectures a static one with it, 0.37 ms.

With COREWARD_SANITIZE=1 in the environment, which is for tests (`make sanitize`), all is built
under the sanitizers of addresses and undefined behaviour, and found in build/sanitize.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from collector.errors import HoldError, UsageError

NAME = "coreward-pipe"
SOURCE = Path(__file__).parent / "pipe_helper.c"
LIBRARY = "coreward-handoff.so"
LIBRARY_SOURCES = tuple(
    Path(__file__).parent / f"{name}.c"
    for name in (
        *("serve", "pool", "results", "watchdog", "watch"),
        *("accept", "accept_socket", "accept_pipe"),
        *(
            "owner",
            "proc",
            "process",
            "descriptors",
            "counted",
            "area",
            "gather",
            "iterate",
            "shared",
        ),
        *("exit_words", "headroom", "bidders", "admit", "pin", "spared", "priority"),
    )
)
COPIER = "coreward-copy"
COPIER_SOURCES = tuple(Path(__file__).parent / f"{name}.c" for name in ("copier", "pieces"))
CPU_LIBRARY = "coreward-cpu.so"
CPU_SOURCE = Path(__file__).parent / "cpu.c"
_HEADERS = Path(__file__).parents[2] / "bpf"  # of the BPF programs' records

_WARNINGS = ("-O2", "-Wall", "-Wextra", "-Werror")
_STATIC = ("-static", "-s")
SANITIZED = os.environ.get("COREWARD_SANITIZE") == "1"
_SANITIZERS = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-omit-frame-pointer", "-g"),
)
_STRICT = (
    *(*_WARNINGS, "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wmissing-prototypes"),
    *("-D_GNU_SOURCE", "-pthread"),
)
_SHARED = (*_STRICT, "-shared", "-fPIC", "-fvisibility=hidden", f"-I{_HEADERS}")
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
        libc = SANITIZED or platform.machine() != "x86_64"
    how = ("-DCOREWARD_LIBC",) if libc else _FREESTANDING
    linked = _SANITIZERS if SANITIZED else _STATIC
    return _compile(directory / NAME, (SOURCE,), [compiler, *_WARNINGS, *how, *linked])


def build_library(directory: Path, compiler: str = "gcc", *, inside: bool = False) -> Path:
    """Compile the library into `directory`, as `build` does.

    inside: tests can call every function, not only what handoff.h exports.
    """
    how = ["-fvisibility=default"] if inside else []
    how += _SANITIZERS if SANITIZED else ()
    return _compile(directory / LIBRARY, LIBRARY_SOURCES, [compiler, *_SHARED, *how])


def build_copier(directory: Path, compiler: str = "gcc") -> Path:
    """Compile the program that copies into `directory`, as `build` does."""
    linked = _SANITIZERS if SANITIZED else _STATIC
    return _compile(directory / COPIER, COPIER_SOURCES, [compiler, *_STRICT, *linked])


def build_cpu(directory: Path, compiler: str = "gcc") -> Path:
    """Compile the library that asks the CPU into `directory`, as `build` does; x86-64 only.

    Never under the sanitizers: processes load it that do not get their runtime.
    """
    return _compile(directory / CPU_LIBRARY, (CPU_SOURCE,), [compiler, *_SHARED])


def _compile(target: Path, sources: Sequence[Path], command: list[str]) -> Path:
    import subprocess  # noqa: PLC0415 - whoever only looks for what was built has no use for it

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    command = [*command, "-o", str(partial), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HoldError(
            f"cannot run {command[0]}: {error.strerror}; install a C compiler"
        ) from error
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise HoldError(f"cannot compile {target.name}: {done.stderr.strip()}")
    partial.chmod(0o755)
    partial.rename(target)  # an agent or a kernel that uses the old one is not disturbed
    return target


def find(name: str) -> Path | None:
    """What was built: of the installation, or of the source tree that this module is in."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "build"
    places = [package, checkout, Path("/usr/lib/coreward")]
    if SANITIZED:
        places = [checkout / "sanitize"]
    return next((place / name for place in places if (place / name).is_file()), None)


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UsageError("usage: python -m collector.native.build OUTDIR")
        outdir = Path(sys.argv[1])
        for built in (
            build(outdir),
            build_library(outdir),
            build_copier(outdir),
            build_cpu(outdir),
        ):
            print(built)
    except (HoldError, UsageError) as failure:
        print(f"coreward: {failure}", file=sys.stderr)
        sys.exit(failure.exit_status)
