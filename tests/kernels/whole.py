"""Scenarios that are tried once on each kernel: the doctor, the demo, an agent that is blind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.kernels.features import Cell, Here, State
from tests.kernels.run import Finding, Scenarios, judged
from tests.system.agents import NotReady, agent
from tests.system.settings import kernel_settings
from tests.system.victims import PATIENCE, ROOT

LIMIT = 10 * PATIENCE  # seconds, for a whole demo and for all that the doctor tries

# What each death of the demo has to show: its reason, and functions of its backtrace in this order.
DEMO = {
    "null_worker": (
        r"SIGSEGV: wrote to address 0x0 in `count_request` \(null_worker\.c:16\),"
        r" thread `worker-3`",
        ["count_request", "serve_request", "serve_client", "worker", "start_thread", "__clone3"],
    ),
    "heap_abort": (
        r"SIGABRT: abort\(\) called from `check_invariant` \(heap_abort\.c:13\)",
        ["abort", "check_invariant", "run", "main", "__libc_start_call_main", "_start"],
    ),
    "wait_for_kill": (
        r"killed by SIGKILL from `bash` \(pid \d+, uid 0\)",
        ["__libc_pause", "main", "__libc_start_call_main", "_start"],
    ),
}


class Kernel(NamedTuple):
    """`cells`: what was found before, on this kernel."""

    here: Here
    cells: Sequence[Cell]


scenarios: Scenarios[Kernel] = Scenarios()


@scenarios.tells("demo")
def demo(_: Kernel) -> Iterator[Finding]:
    with kernel_settings(core_pattern="core", core_pipe_limit="0"):
        done = subprocess.run(
            [sys.executable, "-m", "demo"],
            capture_output=True,
            cwd=ROOT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    yield judged("demo", list(_demo_differences(done)))


def _demo_differences(done: subprocess.CompletedProcess[str]) -> Iterator[str]:
    if done.returncode != 0:
        yield f"status {done.returncode}: {done.stderr.strip()[-500:]}"
    parts = re.split(r"(?m)^--- (\w+): .*\n", done.stdout)
    shown = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name, (reason, functions) in DEMO.items():
        text = shown.get(name, "")
        if not re.search(rf"(?m)^\S+ [0-9a-f]{{16}} pid \d+ {name}: {reason} \[", text):
            yield f"{name}: no such reason in {text[:300]!r}"
        found = re.findall(r"(?m)^#\d+ +0x[0-9a-f]+ in (\w+)\+", text)
        if [function for function in found if function in functions] != functions:
            yield f"{name}: the backtrace is {found}"


@scenarios.tells("blind")
def sees_nothing(_: Kernel) -> Iterator[Finding]:
    """Neither BPF nor a hand-off: an error, unless that is asked for."""
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        try:
            with agent(Path(name), backend="none", loader="none") as ready:
                yield judged("blind", [f"it says {ready.lines}"])
        except NotReady as error:
            said = error.lines[-1] if error.lines else ""
            right = said.startswith("coreward: no death can be seen: ")
            yield judged("blind", [] if right else [f"it says {error.lines}"])


class Claim(NamedTuple):
    """A check of the doctor's, and the cells that it foretells."""

    check: str
    feature: str
    loader: str = ""
    handoff: str = ""


CLAIMS = (
    Claim("BPF, loader core", "ready", loader="core", handoff="none"),
    Claim("BPF, loader bcc", "ready", loader="bcc", handoff="none"),
    Claim("executables of exits, core", "exit-exe", loader="core"),
    Claim("executables of exits, bcc", "exit-exe", loader="bcc"),
    Claim("backtraces of kills, core", "kill-backtrace", loader="core"),
    Claim("backtraces of kills, bcc", "kill-backtrace", loader="bcc"),
    Claim("hand-off by socket", "ready", handoff="socket"),
    Claim("hand-off by pipe", "ready", handoff="pipe"),
    Claim("pin", "instant", handoff="pipe"),
    Claim("pre-copy", "pre-copy"),
    Claim("live processes", "threads", loader="core"),
)


@scenarios.tells("doctor")
def doctor(kernel: Kernel) -> Iterator[Finding]:
    """What it says works is what has worked, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        places = ["--store", f"{name}/store", "--run-dir", f"{name}/run"]
        places += ["--pin-dir", f"/sys/fs/bpf/coreward-test-{os.getpid()}"]
        with kernel_settings(core_pattern="core", core_pipe_limit="0"):
            done = subprocess.run(
                [sys.executable, "-m", "collector", "doctor", *places, "--json"],
                capture_output=True,
                cwd=ROOT,
                text=True,
                timeout=LIMIT,
                check=False,
            )
    if not done.stdout:
        yield judged("doctor", [f"status {done.returncode}: {done.stderr.strip()}"])
        return
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    wrong = [
        f"{name} is needed, and is not there: {check['detail']}"
        for name, check in checks.items()
        if check["needed"] and not check["ok"]
    ]
    compared = 0
    for claim in CLAIMS:
        check = checks.get(claim.check)
        cells = [cell for cell in kernel.cells if _is_meant(cell, claim)]
        compared += len(cells)
        if check is None:
            wrong.append(f"no check is named {claim.check!r}")
        elif any((cell.state is State.WORKS) != check["ok"] for cell in cells):
            states = {f"{cell.loader} {cell.handoff}": cell.state.value for cell in cells}
            wrong.append(f"{claim.check}: {check['ok']}, {check['detail']}; but found: {states}")
    if not compared:
        wrong.append("nothing was tried with which it could be compared")
    yield judged("doctor", wrong)


def _is_meant(cell: Cell, claim: Claim) -> bool:
    return (
        cell.feature == claim.feature
        and cell.loader in ((claim.loader,) if claim.loader else ("core", "bcc"))
        and (not claim.handoff or cell.handoff == claim.handoff)
    )
