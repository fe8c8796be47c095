"""Ten ways to die, and what is true of each: the agent's record is compared with that."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.memory_cgroups import memory_cgroup
from tests.system.victims import build, running

SEGV_MAPERR, BUS_ADRERR, ILL_ILLOPN, FPE_INTDIV, SI_TKILL = 1, 2, 2, 1, -6
PAGE = 4096
CRASH_FRAMES = 256  # innermost frames that a record keeps
OOM_LIMIT = 32 << 20  # bytes; the victim touches twice that

# What an agent that watches these deaths has to be told.
CONFIG = """
defaults: {limit: none}
rules:
  - name: exits-exe
    match: {cause: exit, exe: ["*/exit_status"]}
    capture: record
  - name: exits-comm
    match: {cause: exit, comm: exit_status}
    capture: record
  - name: loop
    match: {exe: ["*/hold_threads"]}
    limit: {captures: 1, period: 1h, fallback: record}
watch:
  - name: service
    match: {comm: watched}
    every: 200ms
    keep: 10
"""

Facts = dict[str, Any]


class Death(NamedTuple):
    """One death. `functions`: of the program itself, innermost first; None: it has no backtrace."""

    name: str
    victim: str
    arguments: tuple[str, ...]
    facts: Mapping[str, Any]
    functions: list[str] | None = None

    @property
    def dumps_core(self) -> bool:
        return bool(self.facts["cause"] == "signal")


def _fault(
    name: str,
    victim: str,
    number: str,
    code: int,
    address: int | str | None,
    functions: list[str],
    *,
    arguments: tuple[str, ...] = (),
    thread: str = "",
    threads: int = 1,
    sender: str | None = None,
) -> Death:
    facts = {
        "cause": "signal",
        "signal_name": number,
        "si_code": code,
        "si_addr": address,
        "comm": victim,
        "thread_name": thread or victim,
        "threads": threads,
        "sender": sender,
        "exit_code": None,
        "oom": False,
    }
    return Death(name, victim, arguments, facts, functions)


def _other(name: str, victim: str, functions: list[str] | None, **facts: Any) -> Death:
    usual = {"signal_name": None, "comm": victim, "sender": None, "exit_code": None, "oom": False}
    return Death(name, victim, (), {**usual, **facts}, functions)


# An address may be "ip", "sp" (at most a page from it) or "page" (it is the start of one); a sender
# "self" or the name of the process that sent the signal.
ZOO = {
    death.name: death
    for death in (
        _fault("null", "null_main", "SIGSEGV", SEGV_MAPERR, 0, ["inner", "outer", "main"]),
        _fault(
            *("worker", "threads", "SIGSEGV", SEGV_MAPERR, 0, ["crash", "crasher"]),
            arguments=("50",),
            thread="crasher",
            threads=51,
        ),
        _fault(
            *("abort", "heap_abort", "SIGABRT", SI_TKILL, None),
            ["check_invariant", "run", "main"],
            arguments=("16",),
            sender="self",
        ),
        _fault("divide", "divide", "SIGFPE", FPE_INTDIV, "ip", ["divide", "main"]),
        _fault("illegal", "illegal", "SIGILL", ILL_ILLOPN, "ip", ["undefined", "main"]),
        _fault("bus", "bus_truncated", "SIGBUS", BUS_ADRERR, "page", ["read_mapped", "main"]),
        _fault(
            *("overflow", "stack_overflow", "SIGSEGV", SEGV_MAPERR, "sp"),
            ["recurse"] * CRASH_FRAMES,
        ),
        _other(
            *("killed", "wait_for_kill", ["main"]),
            cause="killed",
            signal_name="SIGKILL",
            sender="bash",
        ),
        _other("exit", "exit_status", None, cause="exit", exit_code=3),
        _other("oom", "probe_hog", None, cause="oom", signal_name="SIGKILL", oom=True),
    )
}


class Died(NamedTuple):
    """A death that has happened. sender: the pid of whoever sent the signal; None: nobody."""

    death: Death
    pid: int
    sender: int | None
    status: int  # minus the signal, or the exit status
    dumped: bool  # whether the kernel says that it dumped core


def die(death: Death, folder: Path) -> Died:
    """Let it happen; it is over when this returns."""
    with contextlib.ExitStack() as stack:
        if death.name == "oom":
            group = stack.enter_context(memory_cgroup(OOM_LIMIT))
            with group.entered():
                victim = stack.enter_context(running(death.victim, "64", cwd=folder))
        else:
            victim = stack.enter_context(running(death.victim, *death.arguments, cwd=folder))
        sender = victim.pid if death.facts["sender"] == "self" else None
        if death.name == "killed":
            kill = f"kill -KILL {victim.pid}; :"  # `:` keeps bash from becoming something else
            killer = subprocess.Popen(["/bin/bash", "-c", kill])
            killer.wait()
            sender = killer.pid
        else:
            victim.go()
        # WNOWAIT: it is reaped by `wait`
        ended = os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        dumped = ended is not None and ended.si_code == os.CLD_DUMPED
        return Died(death, victim.pid, sender, victim.wait(), dumped)


def die_in_a_loop(count: int, folder: Path) -> list[int]:
    """So many null dereferences, one after the other, as fast as it goes; their pids."""
    command = [str(build("hold_threads"))]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_CORE, unlimited)  # inherited
    pids = []
    for _ in range(count):
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        assert process.wait() == -signal.SIGSEGV
        pids.append(process.pid)
    return pids


def differences(died: Died, record: Facts, *, held: bool, late: bool = False) -> list[str]:
    """What is not true in a record. held: the kernel handed the process over; late: no agent ran
    at that time."""
    death, wrong = died.death, []
    for key, wanted in {**_truth(died, held=held), "late": late}.items():
        if record[key] != wanted:
            wrong.append(f"{key}: {record[key]!r}, not {wanted!r}")
    place, address = death.facts.get("si_addr"), record["si_addr"]
    if isinstance(place, str) and not _is_there(place, address, record):
        wrong.append(f"si_addr: {address!r}, not at its {place}")
    return wrong


def _truth(died: Died, *, held: bool) -> Facts:
    death = died.death
    truth = {**death.facts, "pid": died.pid, "uid": 0, "core_bit": died.dumped}
    if death.name != "exit":  # where the kernel does not tell it, is looked at by itself
        truth["exe"] = str(build(death.victim))
    if isinstance(truth.get("si_addr"), str):
        del truth["si_addr"]  # looked at by itself
    if died.sender is not None:
        name = death.victim if truth["sender"] == "self" else truth["sender"]
        truth["sender"] = {"pid": died.sender, "comm": name, "uid": 0}
    elif death.name == "oom":
        del truth["sender"]
    if death.dumps_core and held:
        return {
            **truth,
            "capture_wanted": "full",
            "capture": "full",
            "outcome": "complete",
            "core": "core.zst",
        }
    truth.pop("threads", None)  # seen only while it is held
    return {**truth, "capture": "record", "outcome": "recorded", "core": None, "release": None}


def _is_there(place: str, address: int | None, record: Facts) -> bool:
    if address is None:
        return False
    if place == "page":
        return address > 0 and address % PAGE == 0
    if place == "sp":
        return abs(address - int(record["sp"])) <= PAGE
    return bool(address == record["ip"])


def functions(record: Facts) -> list[str | None]:
    """Of the program itself, innermost first; without the start-up code."""
    frames = [f for f in record["frames"] or [] if f["module"] == record["exe"]]
    return [f["function"] for f in frames if f["function"] != "_start"]


def backtrace_differences(died: Died, record: Facts) -> list[str]:
    """What is wrong with a backtrace, and whether it ends where threads begin."""
    wanted, found = died.death.functions, functions(record)
    if died.death.name == "overflow":
        # without a hand-off there are only the innermost pages of the stack
        cut = "outer_frames" in record["lost"]
        right = cut and set(found) == {"recurse"} and len(found) <= CRASH_FRAMES
        return [] if right else [f"backtrace of {len(found)} frames, {set(found)}, cut: {cut}"]
    wrong = [] if found == wanted else [f"backtrace {found}, not {wanted}"]
    if record["frames"]:
        last = record["frames"][-1]["function"]
        if last not in ("_start", "__clone3", "clone3"):
            wrong.append(f"the backtrace ends in {last!r}")
    return wrong
