"""`make demo`: three programs really die, and what the agent has to say of them.

Everything is scratch: a store and run directory of its own, a free port for the metrics, BPF pins
under another name. What the agent changes of the system it puts back when it stops.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
COREWARD = [sys.executable, "-m", "collector"]
SAMPLES = {
    "null_worker": "a null dereference, four frames deep in a worker thread",
    "heap_abort": "an abort() with a large heap",
    "wait_for_kill": "SIGKILL by another process",
}


def main() -> int:
    if os.geteuid() != 0:
        print("the demo needs root: it watches real deaths", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="coreward-demo-") as scratch:
        folder = Path(scratch)
        for name in SAMPLES:
            source = ROOT / "demo" / f"{name}.c"
            compiler = ["gcc", "-g", "-pthread", "-o", str(folder / name), str(source)]
            subprocess.run(compiler, check=True)
        return demonstrate(folder)


def demonstrate(folder: Path) -> int:
    """Run the agent, let the samples die, show what is on record."""
    port = free_port()
    store = ["--store", str(folder / "store")]
    command = [*COREWARD, "run", *store, "--config", str(ROOT / "config" / "default.yaml")]
    command += ["--run-dir", str(folder / "run"), "--listen", f"127.0.0.1:{port}"]
    command += ["--pin-dir", f"/sys/fs/bpf/coreward-demo-{os.getpid()}", "--unpin"]
    # a session of its own, as a service has: it yields to its own work, not to all of ours
    agent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        lines = read_lines(agent)
        print(f"$ coreward {' '.join(command[3:7])} ...\n{next(lines)}")
        before = metrics(port)
        for name, what in SAMPLES.items():
            show(folder, name, what, lines, store)
        print("\n--- metrics that moved")
        after = metrics(port)
        for sample, value in after.items():
            at_times = "_timestamp_" in sample or sample.startswith("coreward_store_")
            if value != before.get(sample, 0.0) and not at_times:
                print(f"{sample} {value:g}")
    finally:
        agent.terminate()
        status = agent.wait()
    print("\n--- the kernel's settings are as before")
    print("core_pattern:", Path("/proc/sys/kernel/core_pattern").read_text().strip())
    return status


def show(folder: Path, name: str, what: str, lines: Iterator[str], store: list[str]) -> None:
    """One sample: let it die, wait for the agent's line, print its backtrace."""
    print(f"\n--- {name}: {what}")
    victim = subprocess.Popen([str(folder / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pipe(victim.stdout).readline()  # it says that it is ready
    if name == "wait_for_kill":
        # a process of its own, so that the record can name who did it
        subprocess.run(["bash", "-c", f"kill -KILL {victim.pid}; :"], check=True)
    else:
        pipe(victim.stdin).write(b"\n")
        pipe(victim.stdin).flush()
    victim.wait()
    line = next(line for line in lines if f" pid {victim.pid} " in line)
    print(line)
    sys.stdout.flush()
    # it fails where the kernel tells no mappings of what is killed, and says so
    subprocess.run([*COREWARD, "bt", *store, line.split()[1]], check=False, cwd=ROOT)


def read_lines(agent: subprocess.Popen[str]) -> Iterator[str]:
    """Lines of the agent; it is an error if it ends."""
    if agent.stdout is None:
        return
    for line in agent.stdout:
        yield line.rstrip("\n")
    raise SystemExit(f"the agent ended with status {agent.wait()}")


def metrics(port: int) -> dict[str, float]:
    """Sample -> value, of the project's own metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("coreward_") and "_bucket" not in line:
            sample, _, value = line.rpartition(" ")
            found[sample] = float(value)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pipe(end: IO[bytes] | None) -> IO[bytes]:
    if end is None:
        raise ValueError("not a pipe")
    return end


if __name__ == "__main__":
    sys.exit(main())
