"""Who killed a process, for `coreward info`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from collector.explain import names
from collector.model import KilledBy, Killer, Relative, UnitState

_WAYS = {
    KilledBy.PROCESS: "another process",
    KilledBy.CGROUP_KILL: "a process that wrote to `cgroup.kill`",
    KilledBy.OOM: "the out-of-memory killer, which ran in",
    KilledBy.TIMER: "a timer of its own",
    KilledBy.TERMINAL: "its terminal",
    KilledBy.SECCOMP: "its filter of system calls (seccomp)",
    KilledBy.KERNEL: "the kernel",
    **names.KILLED_BY,
}


def killer_lines(killer: Killer | None) -> Iterator[tuple[str, object]]:
    """Labels and values; None: not known, and not shown."""
    if killer is None:
        return
    yield "killed by", _WAYS[killer.by]
    if killer.pid is not None:
        yield "  process", _process(killer)
        yield "  executable", killer.exe
        yield "  command", None if killer.cmdline is None else shlex.join(killer.cmdline)
        yield "  user", f"uid {killer.uid}, gid {killer.gid}"
        yield "  unit", killer.unit
        yield "  cgroup", killer.cgroup
        yield "  container", "yes" if killer.container else None
        yield "  parents", _parents(killer.parents)
    yield "  systemd", _state(killer.unit_state)
    for part, why in sorted(killer.lost.items()):
        yield f"  no {part}", why


def _process(killer: Killer) -> str:
    inside = f", {killer.ns_pid} in its container" if killer.ns_pid != killer.pid else ""
    thread = f", tid {killer.tid}" if killer.tid != killer.pid else ""
    return f"{killer.comm}, pid {killer.pid}{inside}{thread}"


def _parents(parents: list[Relative]) -> str | None:
    return " < ".join(f"{one.comm} ({one.pid})" for one in parents) or None


def _state(state: UnitState | None) -> str | None:
    if state is None:
        return None
    set_ = "".join(f", {name}={value}" for name, value in state.timeouts.items())
    return f"Result={state.result}, {state.active} ({state.sub}){set_}"
