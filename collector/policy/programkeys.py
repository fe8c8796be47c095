"""Programs of others that a policy names: `dumpers` and `hooks`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from collector.model import Cause
from collector.policy import podkeys
from collector.policy import yamlnodes as nodes
from collector.policy.matchkeys import match
from collector.policy.parsers import LEAST_HELD, MOST_HELD, SIZE, between, rule_name, user
from collector.policy.units import quote
from collector.policy.yamlnodes import Document, Parser, Problem


def _command(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A program and its arguments, which no shell sees."""
    words: tuple[str, ...] = nodes.items(doc, node, path, nodes.text)
    if words and not PurePosixPath(words[0]).is_absolute():
        raise Problem(node, path, f"{quote(words[0])}: expected the absolute path of a program")
    return words


def _dumper_name(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}", text):
        raise ValueError("expected up to 64 letters, digits and any of _.:@-")
    return text


def _module(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]{0,255}:[A-Za-z_]\w{0,63}", text):
        raise ValueError(f"{quote(text)}: expected package.module:name")
    return text


def _refuse_pods(doc: Document, node: yaml.Node | None, path: str) -> None:
    """A dumper is asked by what it has registered with, which knows nothing of pods."""
    given = {} if node is None else nodes.present(node)
    for key in podkeys.OF_PODS:
        if key in given:
            right = "a dumper is not chosen by pod; its probe() may look at `cgroup`"
            doc.problem(given[key], f"{path}.{key}", right)


def dumper(
    doc: Document, node: yaml.Node, path: str, given: dict[str, Any]
) -> dict[str, Any] | None:
    """A dumper is named in one way, and asked about deaths that the kernel hands over."""
    present = nodes.present(node)
    if "module" in present and "entry_point" in present:
        doc.problem(node, path, "give either module or entry_point, not both")
    _refuse_pods(doc, present.get("match"), f"{path}.match")
    match = given.get("match")
    if match is not None and not {Cause.SIGNAL, Cause.KILLED} >= set(match.cause or ()):
        where = nodes.present(present["match"])["cause"]
        doc.problem(where, f"{path}.match.cause", "expected signal or killed: others leave nothing")
    return given


DUMPER: Mapping[str, Parser] = {
    "name": nodes.written(_dumper_name, "a name"),
    "module": nodes.written(_module, "package.module:name"),
    "entry_point": nodes.text,
    "match": match,
    "pin": nodes.boolean,
    "timeout": between(LEAST_HELD, MOST_HELD, "100ms to 1h", "30s"),
    "user": user,
    "memory": SIZE,
}
HOOK: Mapping[str, Parser] = {
    "name": rule_name,
    "match": match,
    "exec": _command,
    "user": user,
    "timeout": between(LEAST_HELD, MOST_HELD, "100ms to 1h", "30s"),
}
