"""`python -m collector.probe.build OUTDIR`: compile bpf/*.bpf.c to OUTDIR/*.bpf.o.

A build step for machines with clang; the agent never runs it. The objects are relocated by libbpf
when they are loaded, so they fit kernels other than the one that they were built on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from collector.errors import CorewardError, ProbeError
from collector.probe import btf, files

_OPTIONS = """
    -target bpf -D__TARGET_ARCH_x86 -mcpu=v3 -O2 -g -Wall -Werror -Wno-unused-function
    -Wno-missing-declarations
"""


def compile_object(source: Path, headers: Path, target: Path) -> None:
    """Compile one BPF source against OUTDIR/vmlinux.h, without debug lines (BTF stays).

    ProbeError with the compiler's own words if it fails.
    """
    included = [f"-I{headers}", f"-I{source.parent}"]
    _run(["clang", *_OPTIONS.split(), *included, "-c", str(source), "-o", str(target)])
    _run(["llvm-strip", "-g", str(target)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ProbeError(f"{command[0]} is missing: install the packages clang and llvm") from error
    if done.returncode:
        raise ProbeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def build(out: Path) -> Path:
    """Make OUTDIR/vmlinux.h and the objects; returns the path of OUTDIR/coreward.bpf.o."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "vmlinux.h").write_text(btf.vmlinux_h())
    _compile(files.live_source_file(), out, out / files.LIVE_OBJECT_NAME)
    _compile(files.trace_source_file(), out, out / files.TRACE_OBJECT_NAME)
    return _compile(files.source_file(), out, out / files.OBJECT_NAME)


def _compile(source: Path, headers: Path, target: Path) -> Path:
    partial = target.with_suffix(".partial")
    compile_object(source, headers, partial)
    return partial.replace(target)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m collector.probe.build OUTDIR", file=sys.stderr)
        return 2
    try:
        print(build(Path(arguments[0])))
    except CorewardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
