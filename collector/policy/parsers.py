"""Parsers of values, and of lists and mappings, that several sections of a policy have."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from collector.model import Release
from collector.policy import yamlnodes as nodes
from collector.policy.opted import COLLECT
from collector.policy.units import parse_duration, parse_size, quote
from collector.policy.yamlnodes import Document, Parser, Problem

PAGE = 4096
_MAX_PERIOD = 366 * 86400.0
Finish = Callable[[Document, yaml.Node, str, dict[str, Any]], Any]


def section(fields: Mapping[str, Parser]) -> Parser:
    """Parser of a mapping with these keys, to its values by key."""
    return partial(_mapping_of, fields=fields)


def _mapping_of(
    doc: Document, node: yaml.Node, path: str, fields: Mapping[str, Parser]
) -> dict[str, Any]:
    return nodes.mapping(doc, node, path, fields)


def any_of(parse: Parser) -> Parser:
    """Parser of one such value, or of a list of them; a tuple in any case."""

    def parse_items(doc: Document, node: yaml.Node, path: str) -> tuple[Any, ...]:
        return nodes.items(doc, node, path, parse)

    return parse_items


def or_none(parse: Parser) -> Parser:
    """The same, or None where no limit is wanted."""

    def parse_or_none(doc: Document, node: yaml.Node, path: str) -> Any:
        return None if nodes.is_off(node) else parse(doc, node, path)

    return parse_or_none


def named(
    kind: str, fields: Mapping[str, Parser], *needed: str, finish: Finish | None = None
) -> Parser:
    """Parser of a list of mappings that each have a name, no two the same.

    finish: makes more of a member than its checked values; takes its node as well.
    """

    def parse(doc: Document, node: yaml.Node, path: str) -> tuple[Any, ...]:
        if nodes.is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise Problem(node, path, f"expected a list of {kind}s, not {nodes.describe(node)}")
        found = []
        lines: dict[str | None, int] = {}
        for index, one_node in enumerate(node.value):
            where = f"{path}[{index}]"
            one, good = doc.attempt(section(fields), one_node, where)
            if not good:
                continue
            present = nodes.present(one_node)
            for key in ("name", *needed):
                if key not in present:
                    doc.problem(one_node, where, f"has no `{key}`")
            line = one_node.start_mark.line + 1
            name = one.get("name")
            if name is None or name not in lines:
                lines[name] = line
            else:
                at = f"the {kind} on line {lines[name]}"
                doc.problem(present["name"], f"{where}.name", f"{quote(name)} is the name of {at}")
            found.append(one if finish is None else finish(doc, one_node, where, one))
        return tuple(one for one in found if one is not None)

    return parse


def rule_name(doc: Document, node: yaml.Node, path: str) -> str:
    """A name that records and metrics can show."""
    name = nodes.text(doc, node, path)
    if len(name) > 64 or not name.isprintable() or name != name.strip():
        raise Problem(node, path, "must be at most 64 printable characters, no space at the ends")
    if name == COLLECT:
        raise Problem(node, path, f'"{COLLECT}" is reserved for what pods say')
    if name == "defaults":
        raise Problem(node, path, '"defaults" is reserved for deaths that no rule matches')
    return name


def between(least: float, most: float, words: str, such: str) -> Parser:
    """A duration in seconds, with its bounds. words, such: bounds and an example for people."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError(f"expected a duration from {words}, not {quote(text)}")
        return seconds

    return nodes.written(parse, f"a duration such as {such}")


def period(text: str) -> float:
    """Seconds in which so and so many are allowed."""
    seconds = parse_duration(text)
    if seconds > _MAX_PERIOD:
        raise ValueError(f"expected a duration of at most a year, not {quote(text)}")
    return seconds


def part(text: str) -> float:
    """`10%` -> 0.1."""
    if not re.fullmatch("[1-9][0-9]?%", text):
        raise ValueError(f"{quote(text)}: expected a share, 1% to 99%")
    return int(text[:-1]) / 100


def size_or_auto(doc: Document, node: yaml.Node, path: str) -> int | None:
    """Bytes; None: `auto`."""
    if isinstance(node, yaml.ScalarNode) and node.value == "auto":
        return None
    size: int = SIZE(doc, node, path)
    return size


def size_or_part(doc: Document, node: yaml.Node, path: str) -> int | float | None:
    """Bytes, or a share of the file system as a float; None: no limit."""
    if nodes.is_off(node):
        return None
    value = nodes.scalar(node, path, "a size such as 20GiB, a share such as 10%, or none")
    parse = _PART if value.endswith("%") else SIZE
    found: int | float = parse(doc, node, path)
    return found


def user(doc: Document, node: yaml.Node, path: str) -> int:
    """The uid of a user of this host."""
    name = nodes.scalar(node, path, "a user name")
    if name.isdecimal():
        raise Problem(node, path, f"{quote(name)} is a number; write uid: {name[:12]}")
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise Problem(node, path, f"no user {quote(name)} on this host") from None


def group(doc: Document, node: yaml.Node, path: str) -> int | None:
    """The gid of a group of this host; None: nobody's."""
    if nodes.is_off(node):
        return None
    name = nodes.scalar(node, path, "the name of a group, or none")
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise Problem(node, path, f"no group {quote(name)} on this host") from None


def absolute_path(doc: Document, node: yaml.Node, path: str) -> Path:
    """The path of a directory that is not the root."""
    value = PurePosixPath(nodes.text(doc, node, path))
    if not value.is_absolute() or ".." in value.parts or len(value.parts) < 2:
        raise Problem(node, path, f"{quote(str(value))} is not an absolute path of a directory")
    return Path(value)


SIZE = nodes.written(parse_size, "a size such as 512MiB")
_PART = nodes.written(part, "a share such as 10%")
DURATION = nodes.written(parse_duration, "a duration such as 30s")
RELEASE = nodes.choice({str(r): r for r in (Release.INSTANT, Release.AFTER_WRITE)})
LEAST_HELD, MOST_HELD = 0.1, 3600.0
