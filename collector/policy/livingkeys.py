"""Rules for processes that live: `watch` with its triggers, `arm` and `trace`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from collector.model import Capture, Cause, SnapshotMode
from collector.policy import yamlnodes as nodes
from collector.policy.matchkeys import living
from collector.policy.parsers import (
    DURATION,
    PAGE,
    SIZE,
    any_of,
    between,
    named,
    part,
    period,
    rule_name,
    section,
)
from collector.policy.types import (
    WATCH_MEMORY,
    ArmRule,
    ArmSettings,
    Condition,
    RecorderSettings,
    Trigger,
)
from collector.policy.units import parse_size, quote, show_size
from collector.policy.yamlnodes import Document, Parser

_LEAST_WITHIN, _MOST_WITHIN = 0.01, 1.5  # seconds; 2 s after the kill the kernel takes the memory
_MOST_ARMED = 1024
_SHORTEST, _MAX_EVERY = 0.01, 3600.0  # seconds between two samples
_MAX_STACK = 64 << 10  # bytes that BPF copies of a stack at most
_MAX_KEPT_CALLS, _MAX_KEPT_TEXT = 64, 64  # CW_KEPT_CALLS, CW_KEPT_TEXT in bpf/trace.h
_IN_SECONDS = (Condition.UNINTERRUPTIBLE, Condition.BLOCKED, Condition.NO_PROGRESS)
_OF_A_THREAD = (Condition.UNINTERRUPTIBLE, Condition.BLOCKED)


def _calls(text: str) -> str:
    from collector.arch.call_sets import wanted  # noqa: PLC0415 - few policies have such rules

    wanted([text])
    return text


def _stack(text: str) -> int:
    size = parse_size(text)
    if not PAGE <= size <= _MAX_STACK:
        raise ValueError(f"expected a size from 4KiB to 64KiB, not {quote(text)}")
    return size


def _cpus(text: str) -> float:
    right = "expected a share of one CPU such as 90%, or 150% for one and a half"
    if not re.fullmatch("[0-9]{1,6}%", text) or text == "0%":
        raise ValueError(f"{quote(text)}: {right}")
    return int(text[:-1]) / 100


def _trigger(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> Trigger | None:
    """A trigger has exactly one condition, and only the keys that go with it."""
    present = nodes.present(node)
    conditions = [condition for condition in Condition if condition.value in present]
    if len(conditions) != 1:
        known = ", ".join(condition.value for condition in Condition)
        found = " and ".join(condition.value for condition in conditions) or "none"
        doc.problem(node, path, f"expected exactly one condition out of {known}; it has {found}")
        return None
    condition = conditions[0]
    if "for" in present and condition in _IN_SECONDS:
        doc.problem(present["for"], f"{path}.for", f"`{condition.value}` is a duration already")
    if "threads" in present and condition not in _OF_A_THREAD:
        doc.problem(
            present["threads"], f"{path}.threads", f"`{condition.value}` is of the whole process"
        )
    if "name" not in given or condition.value not in given:
        return None  # reported already
    limit = given.get("limit", {})
    plain = {key: given[key] for key in ("threads", "mode", "capture") if key in given}
    return Trigger(
        name=given["name"],
        condition=condition,
        above=float(given[condition.value]),
        lasting=given.get("for", 0.0),
        **plain,
        **limit,
    )


def check_memory(doc: Document, given: dict[str, Any]) -> None:
    """A rule whose processes need more than the recorder may have would never watch any."""
    most = given.get("recorder", {}).get("memory", RecorderSettings().memory)
    rules = given.get("watch", ())
    written = nodes.present(doc.root)["watch"].value if rules and doc.root is not None else ()
    if len(written) != len(rules):  # one of them is wrong, and that is said
        return
    for index, (rule, node) in enumerate(zip(rules, written, strict=True)):
        size = rule.get("memory", WATCH_MEMORY)
        if size > most:
            have = f"recorder.memory, {show_size(most)} for all processes"
            where = nodes.present(node).get("memory", node)
            problem = f"expected at most {have}, not {show_size(size)}"
            doc.problem(where, f"watch[{index}].memory", problem)


SNAPSHOT_LIMIT: Mapping[str, Parser] = {
    "snapshots": nodes.integer(1, 10_000, "a number of snapshots"),
    "period": nodes.written(period, "a duration such as 1h"),
}
TRIGGER: Mapping[str, Parser] = {
    "name": rule_name,
    Condition.UNINTERRUPTIBLE: DURATION,
    Condition.BLOCKED: DURATION,
    Condition.NO_PROGRESS: DURATION,
    Condition.RESIDENT: SIZE,
    Condition.DESCRIPTORS: nodes.integer(1, 1 << 30, "a number of descriptors"),
    Condition.CPU: nodes.written(_cpus, "a share of one CPU such as 90%"),
    Condition.MEMORY: nodes.written(part, "a share such as 90%"),
    Condition.MEMORY_HIGH: nodes.integer(1, 1 << 30, "a number of events a second"),
    Condition.PRESSURE: nodes.written(part, "a share such as 20%"),
    "for": DURATION,
    "threads": any_of(nodes.text),
    "mode": nodes.choice({mode.value: mode for mode in SnapshotMode}),
    "capture": nodes.choice({c.value: c for c in (Capture.FULL, Capture.STACKS, Capture.THREADS)}),
    "limit": section(SNAPSHOT_LIMIT),
}
WATCH: Mapping[str, Parser] = {
    "name": rule_name,
    "match": living,
    "every": between(_SHORTEST, _MAX_EVERY, "10ms to 1h", "1s"),
    "keep": nodes.integer(1, 100_000, "a number of samples"),
    "memory": SIZE,
    "stack": nodes.written(_stack, "a size such as 16KiB"),
    "triggers": named("trigger", TRIGGER, finish=_trigger),
}
ARM: Mapping[str, Parser] = {
    "name": rule_name,
    "match": living,
    "on": any_of(nodes.choice({str(c): c for c in (Cause.KILLED, Cause.OOM, Cause.EXIT)})),
    "capture": nodes.choice({str(c): c for c in (Capture.FULL, Capture.STACKS, Capture.THREADS)}),
    "within": between(_LEAST_WITHIN, _MOST_WITHIN, "10ms to 1500ms", "300ms"),
    "children": nodes.boolean,
}
ARM_SECTION: Mapping[str, Parser] = {
    "max": nodes.integer(1, _MOST_ARMED, "a number of processes"),
    "rules": named("arm rule", ARM, "match"),
}
TRACE: Mapping[str, Parser] = {
    "name": rule_name,
    "match": living,
    "calls": nodes.integer(1, _MAX_KEPT_CALLS, "a number of calls"),
    "strings": nodes.integer(0, _MAX_KEPT_TEXT, "a number of bytes"),
    "include": any_of(nodes.written(_calls, "a system call, or a set such as %file")),
    "exclude": any_of(nodes.written(_calls, "a system call, or a set such as %file")),
}


def arm(given: dict[str, Any]) -> ArmSettings:
    """From checked values."""
    rules = tuple(ArmRule(**rule) for rule in given.get("rules", ()))
    return ArmSettings(**{**given, "rules": rules})
