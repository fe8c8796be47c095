"""What ran out of memory, for `coreward info`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from collector.cli import render
from collector.model import OomFacts

_TOP = 8  # sizes and tasks


def oom_lines(facts: OomFacts | None) -> Iterator[tuple[str, object]]:
    """Labels and values; None: not known, and not shown."""
    if facts is None:
        return
    if facts.limit is None:
        yield "of what", "the host" if facts.host else None
        yield "it had", _sizes(facts.host)
    else:
        yield "of what", f"memory cgroup {facts.cgroup}" if facts.cgroup else "a memory cgroup"
        used = None if facts.usage is None else f"{render.size(facts.usage)} of "
        yield "in use", f"{used or ''}{render.size(facts.limit)}"
        yield "full of", _sizes(dict(sorted(facts.stat.items(), key=lambda pair: -pair[1])))
        counts = [f"{name} {count}" for name, count in facts.events.items() if count]
        yield "events", ", ".join(counts) or None
    yield "tasks", _tasks(facts)
    for part, why in sorted(facts.lost.items()):
        yield f"no {part}" if part != "tasks" else "not all tasks", why


def _sizes(sizes: Mapping[str, int]) -> str | None:
    first = list(sizes.items())[:_TOP]
    return ", ".join(f"{name} {render.size(size)}" for name, size in first) or None


def _tasks(facts: OomFacts) -> str | None:
    if facts.task_count is None:
        return None
    shown = [f"{one.comm} ({one.pid}) {render.size(one.resident)}" for one in facts.tasks[:_TOP]]
    return ", ".join([*shown, f"of {facts.task_count}"])
