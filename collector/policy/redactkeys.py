"""What a policy's `redact` may say: names, globs, regular expressions and mappings to look for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from collector.policy import yamlnodes as nodes
from collector.policy.choices import choices
from collector.policy.parsers import between, named, rule_name
from collector.policy.units import quote
from collector.policy.yamlnodes import Document, Parser, Problem
from collector.redact.ask import wrong
from collector.redact.types import MOST_GLOBS, MOST_PATTERNS, MOST_REGEX, OWN_NAMES, Pattern

_VARIABLE_GLOB = 'a name of variables such as "*_TOKEN"'
_ARGUMENT_GLOB = 'a glob of arguments such as "--password"'


def _listed(what: str, such: str, parse: Callable[[str], str]) -> Parser:
    """Parser of a list of globs; an empty one lifts what the defaults list."""

    def parse_list(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode) and not node.value:
            return ()
        found: tuple[str, ...] = nodes.items(doc, node, path, nodes.written(parse, such))
        if len(found) > MOST_GLOBS:
            raise Problem(node, path, f"expected at most {MOST_GLOBS} {what}")
        return found

    return parse_list


def _variable_glob(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_*?]{1,128}", text):
        raise ValueError(f"{quote(text)}: expected {_VARIABLE_GLOB}")
    return text


def _argument_glob(text: str) -> str:
    if not 1 <= len(text) <= 256 or not text.isprintable():
        raise ValueError(f"{quote(text)}: expected {_ARGUMENT_GLOB}, at most 256 characters")
    return text


def _regex(doc: Document, node: yaml.Node, path: str) -> str:
    text = nodes.text(doc, node, path)
    if len(text) > MOST_REGEX:
        raise Problem(node, path, f"expected at most {MOST_REGEX} characters")
    doc.regexes.append((node, path, text))
    return text


PATTERN: Mapping[str, Parser] = {
    "name": rule_name,
    "regex": _regex,
}


def _pattern(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> Pattern | None:
    if given.get("name") in OWN_NAMES:
        where = nodes.present(node)["name"]
        doc.problem(where, f"{path}.name", f"expected another name than {', '.join(OWN_NAMES)}")
    return Pattern(**given) if given.keys() == PATTERN.keys() else None


_NAMED_PATTERNS = named("pattern", PATTERN, "regex", finish=_pattern)


def _patterns(doc: Document, node: yaml.Node, path: str) -> tuple[Pattern, ...]:
    """Regular expressions with names, which RE2 must take: all of them at a time."""
    if isinstance(node, yaml.SequenceNode) and len(node.value) > MOST_PATTERNS:
        raise Problem(node, path, f"expected at most {MOST_PATTERNS} patterns")
    found: tuple[Pattern, ...] = _NAMED_PATTERNS(doc, node, path)
    return found


def check_regexes(doc: Document) -> None:
    """All at a time, by a process that has the engine."""
    found = wrong([text for _, _, text in doc.regexes]) if doc.regexes else []
    for (node, path, text), problem in zip(doc.regexes, found, strict=True):
        if problem is not None:
            doc.problem(node, path, f"{quote(text)}: {problem}")


REDACT: Mapping[str, Parser] = {
    "environment": _listed("names", _VARIABLE_GLOB, _variable_glob),
    "arguments": _listed("globs", _ARGUMENT_GLOB, _argument_glob),
    "patterns": _patterns,
    "mappings": choices,
    "time": between(1.0, 3600.0, "1s to 1h", "1m"),
}
