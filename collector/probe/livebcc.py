"""`python -m collector.probe.livebcc DIRECTORY`: compile bpf/live.bpf.c with bcc, pin, exit.

A process of its own for the same reason as `bccload`. The pins live for a moment: who asked for
them opens and removes them.
"""

from __future__ import annotations

from pathlib import Path

from collector.errors import ProbeError
from collector.linux import libbpf
from collector.linux.libbpf import ProgramType
from collector.probe import bccload, files
from collector.probe.live import LISTINGS, MAPS
from collector.probe.pins import ITERATORS


def load(directory: Path) -> None:
    """Compile and pin, in this process. ProbeError says what went wrong."""
    BPF = bccload.compiler()
    try:
        program = BPF(text=bccload.translated(files.live_source_file()), cflags=["-w"])
        found = {
            name: program.load_func(f"bpf_iter__{target}", BPF.TRACING).fd
            for name, target in zip(ITERATORS, ("task", "task_vma"), strict=True)
        }
        found["catch_running"] = program.load_func("catch_running", BPF.PERF_EVENT).fd
        for name in LISTINGS:  # bcc loads one iterator of a target: its code, loaded by libbpf
            code = program.dump_func(name)
            found[name] = libbpf.load_program(ProgramType.TRACING, code, iterator="task")
    except Exception as error:
        raise ProbeError(f"bcc could not load the programs: {error}") from error
    for name in MAPS:
        found[name] = program[name].map_fd
    try:
        for name, descriptor in found.items():
            libbpf.pin(descriptor, str(directory / name))
    except OSError as error:
        raise ProbeError(f"{directory}: {error.strerror}") from error


def load_elsewhere(directory: Path) -> None:
    """The same in a short-lived process."""
    bccload.load_elsewhere(directory, __name__)


if __name__ == "__main__":
    bccload.run_loader(load)
