"""The conditions of a rule: which deaths, or which processes that live, it is about."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from collector.model import Cause
from collector.policy import podkeys
from collector.policy import yamlnodes as nodes
from collector.policy.parsers import any_of, user
from collector.policy.types import Match
from collector.policy.units import parse_signal
from collector.policy.yamlnodes import Document, Parser, Problem


def match(doc: Document, node: yaml.Node, path: str) -> Match:
    """The match of a rule for deaths."""
    given = nodes.mapping(doc, node, path, MATCH)
    if nodes.is_null(node) or not node.value:
        raise Problem(node, path, "no condition; what holds for every death belongs in `defaults`")
    if "uid" in given and "user" in given:
        raise Problem(node, path, "give either uid or user, not both")
    if "user" in given:
        given["uid"] = given.pop("user")
    if given.get("cause") == (Cause.EXIT,) and "signal" in given:
        raise Problem(node, path, "never matches: an exit has no signal")
    return Match(**given)


def living(doc: Document, node: yaml.Node, path: str) -> Match:
    """The match of a rule for processes that live: what is known of these."""
    given = nodes.present(node)
    for key in ("signal", "cause"):
        if key in given:
            raise Problem(given[key], f"{path}.{key}", "a process that lives has none")
    return match(doc, node, path)


MATCH: Mapping[str, Parser] = {
    "exe": any_of(nodes.text),
    "comm": any_of(nodes.text),
    "cgroup": any_of(nodes.text),
    "unit": any_of(nodes.text),
    "uid": any_of(nodes.integer(0, (1 << 32) - 2, "a uid")),
    "user": any_of(user),
    "signal": any_of(nodes.written(parse_signal, "a signal such as SIGSEGV")),
    "cause": any_of(nodes.choice({str(cause): cause for cause in Cause})),
    "container": nodes.boolean,
    **podkeys.MATCH,
}
