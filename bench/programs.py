"""Build the small C programs of the benchmark, into `build/bench`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"


def build(
    name: str, output: str | None = None, options: Sequence[str] = (), **defines: str
) -> Path:
    """Compile `bench/NAME.c` with string constants `defines`; the file of the program.

    Raises subprocess.CalledProcessError; the compiler says why on standard error.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / (output or name)
    constants = [f'-D{key}="{value}"' for key, value in defines.items()]
    command = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", *options, *constants]
    partial = target.with_suffix(".new")
    source = ROOT / "bench" / f"{name}.c"
    subprocess.run([*command, "-o", str(partial), str(source)], check=True)
    partial.rename(target)
    return target
