"""`python -m collector.probe.bccload DIRECTORY`: compile and load the programs with bcc, pin, exit.

A process of its own because bcc brings a whole compiler along (more than 100 MB); the agent reads
the pins. No kernel headers are needed: the types come from the running kernel's BTF (btf.py).
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from collector.errors import CorewardError, ProbeError
from collector.linux import libbpf, verifier
from collector.probe import btf, files, pins

log = logging.getLogger(__name__)

TIMEOUT = 120  # seconds
PACKAGE = "python3-bpfcc (Debian, Ubuntu) or bcc (Fedora); the one on PyPI is something else"

# bcc has methods of maps where C has helpers, and does not find them in macros.
_METHODS = (
    (r"bpf_map_lookup_elem\(&(\w+), ", r"\1.lookup("),
    (r"bpf_map_update_elem\(&(\w+), ([^;]*), BPF_ANY\)", r"\1.update(\2)"),
    (r"bpf_map_update_elem\(&(\w+), ([^;]*), BPF_NOEXIST\)", r"\1.insert(\2)"),
    (r"bpf_map_delete_elem\(&(\w+), ", r"\1.delete("),
    (r"bpf_task_storage_get\(&(\w+), ", r"\1.task_storage_get("),
    (r"bpf_ringbuf_reserve\(&(\w+), ([^,]*), 0\)", r"\1.ringbuf_reserve(\2)"),
    (r"bpf_ringbuf_submit\(", "ring.ringbuf_submit("),
)


def _with_headers(source: Path) -> str:
    """A source with its own headers in place; they stand beside it, and are included once."""

    def header(found: re.Match[str]) -> str:
        path = source.parent / found[1]
        return _with_headers(path) if path.is_file() else found[0]

    return re.sub(r'^#include "([\w.]+)"$', header, source.read_text(), flags=re.MULTILINE)


def translated(source: Path) -> str:
    """The source as bcc takes it: one text, and the methods of maps."""
    text = _with_headers(source)
    for pattern, method in _METHODS:
        text = re.sub(pattern, method, text)
    return f"#define COREWARD_BCC 1\n{text}"


def cache_dir() -> Path:
    """Where header trees are kept: $CACHE_DIRECTORY of the service manager, or a default."""
    base = os.environ.get("CACHE_DIRECTORY")
    return Path(base) if base else Path("/var/cache/coreward")


def compiler() -> Any:
    """bcc's class BPF, with this kernel's types. ProbeError if bcc is not there."""
    try:
        from bcc import BPF  # noqa: PLC0415 - heavy, and not on every machine
    except ImportError as error:
        raise ProbeError(f"bcc cannot be imported ({error}): install {PACKAGE}") from error
    os.environ["BCC_KERNEL_SOURCE"] = str(btf.header_tree(cache_dir(), _helpers()))
    return BPF


def _helpers() -> set[str]:
    """The helpers that bcc's headers name: they are a text inside of its library."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith("libbcc.so"):
            found = re.findall(rb"\bBPF_FUNC_\w+", Path(f"/{path}").read_bytes())
            return {name.decode() for name in found}
    return set()


def load(directory: Path) -> None:
    """Compile, attach and pin, in this process. ProbeError says what went wrong."""
    BPF = compiler()
    try:
        program = BPF(text=translated(files.source_file()), cflags=["-w"])
        iterators = {
            name: program.load_func(f"bpf_iter__{target}", BPF.TRACING).fd
            for name, target in zip(pins.ITERATORS, ("task", "task_vma"), strict=True)
        }
    except Exception as error:
        raise ProbeError(f"bcc could not load the programs: {error}") from error
    links = {name.decode(): fd for name, fd in program.raw_tracepoint_fds.items()}
    with libbpf.Types() as types:
        tells_early = pins.tells_exit_early(types)
    if not tells_early:
        try:
            code = program.dump_func(pins.LEAVING)
            links[pins.LEAVING] = libbpf.attach_function(
                libbpf.load_program(
                    libbpf.ProgramType.TRACING, code, function=pins.LEAVING_FUNCTION
                )
            )
        except OSError as error:
            log.warning("without the program %s: %s", pins.LEAVING, error)
    maps = {name: program[name].map_fd for name in pins.MAPS}
    pins.publish(pins.Programs(links=links, maps=maps, iterators=iterators), directory)


def load_elsewhere(directory: Path, module: str = "collector.probe.bccload") -> None:
    """The same in a short-lived process; the caller's memory does not grow."""
    command = [sys.executable, "-m", module, str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"bcc did not finish in {TIMEOUT} s") from error
    if done.returncode:
        log.debug("%s", done.stderr)
        raise ProbeError(f"the bcc loader failed: {verifier.explain(done.stderr)}")


def run_loader(load: Callable[[Path], None]) -> NoReturn:
    """The whole of a loader process: load into the directory that is its argument, and end."""
    status = _run_loader(load, sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # bcc's destructors would take longer than all the rest


def _run_loader(load: Callable[[Path], None], arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(f"usage: {sys.argv[0]} DIRECTORY", file=sys.stderr)
        return 2
    try:
        libbpf.version()
        load(Path(arguments[0]))
    except CorewardError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    run_loader(load)
