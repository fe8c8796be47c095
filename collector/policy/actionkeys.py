"""What a policy wants done about a death: the keys of `defaults`, which each rule may have too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from msgspec.structs import replace

from collector.model import Capture
from collector.policy import yamlnodes as nodes
from collector.policy.choices import choices
from collector.policy.parsers import PAGE, RELEASE, SIZE, period, section
from collector.policy.redactkeys import REDACT
from collector.policy.types import Action, Codec, Collect, Compress, Limit, MemoryChoice, Routine
from collector.policy.units import quote
from collector.policy.yamlnodes import Document, Parser, Problem
from collector.redact.types import Redact

_MOST_ATTRIBUTES = 32
_VARIABLE = "the name of a variable such as RELEASE"
_CODEC = nodes.choice({str(codec): codec for codec in Codec})
_SMALLER = nodes.choice({str(c): c for c in (Capture.STACKS, Capture.THREADS, Capture.RECORD)})
_KEPT = nodes.choice({str(c): c for c in Capture if c is not Capture.NONE})


def _attributes(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A list of names of variables; an empty one lifts what the defaults list."""
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    found: tuple[str, ...] = nodes.items(doc, node, path, nodes.written(_variable, _VARIABLE))
    if len(found) > _MOST_ATTRIBUTES:
        raise Problem(node, path, f"expected at most {_MOST_ATTRIBUTES} names")
    return found


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", text):
        raise ValueError(f"{quote(text)}: expected {_VARIABLE}")
    return text


def _logs(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    lines: int = nodes.integer(1, 1000, "a number of lines (or off)")(doc, node, path)
    return lines


def _memory_max(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    size: int = SIZE(doc, node, path)
    if size < PAGE:
        raise Problem(node, path, "is less than a page (4KiB); to keep no memory: capture: threads")
    return size


def _coredump_filter(doc: Document, node: yaml.Node, path: str) -> int | None:
    if nodes.is_off(node):
        return None
    right = "expected hexadecimal bits from 0x0 to 0x1ff such as 0x33 (core(5)), or none"
    value = nodes.scalar(node, path, right)
    if not re.fullmatch("0x[0-9a-fA-F]{1,8}", value) or int(value, 16) > 0x1FF:
        raise Problem(node, path, f"{quote(value)}: {right}")
    return int(value, 16)


def _compress(doc: Document, node: yaml.Node, path: str) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {"codec": Codec.NONE if nodes.is_off(node) else _CODEC(doc, node, path)}
    return nodes.mapping(doc, node, path, _COMPRESS)


def _keys_or_none(fields: Mapping[str, Parser]) -> Parser:
    """Parser of a mapping with these keys; None: there is to be none."""

    def parse(doc: Document, node: yaml.Node, path: str) -> dict[str, Any] | None:
        if nodes.is_off(node):
            return None
        if isinstance(node, yaml.ScalarNode):
            right = f"expected keys ({', '.join(fields)}), or none"
            raise Problem(node, path, f"{right}, not {nodes.describe(node)}")
        return nodes.mapping(doc, node, path, fields)

    return parse


def either(doc: Document, node: yaml.Node, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """`capture` is one amount, `collect` several: a rule, or the defaults, say one of them."""
    if "capture" in given and given.get("collect") is not None:
        where = nodes.present(node)["collect"]
        doc.problem(where, f"{path}.collect", "give either capture or collect, not both")
    return given


def defaults(doc: Document, node: yaml.Node, path: str) -> dict[str, Any]:
    """The section `defaults`."""
    return either(doc, node, path, nodes.mapping(doc, node, path, ACTION))


def _fallback(doc: Document, node: yaml.Node, path: str) -> Capture:
    if nodes.is_off(node):
        raise Problem(node, path, "a death beyond the limit is at least recorded: record")
    capture: Capture = _SMALLER(doc, node, path)
    return capture


_MEMORY: Mapping[str, Parser] = {
    "max": _memory_max,
    "include": choices,
    "exclude": choices,
    "dontdump": nodes.boolean,
    "coredump_filter": _coredump_filter,
}
_COMPRESS: Mapping[str, Parser] = {
    "codec": _CODEC,
    "level": nodes.integer(1, 19, "a level"),
    "workers": nodes.integer(1, 64, "a number of threads"),
}
_LIMIT: Mapping[str, Parser] = {
    "captures": nodes.integer(0, 10_000, "a number of captures"),
    "period": nodes.written(period, "a duration such as 1h"),
    "fallback": _fallback,
}
COLLECT_KEYS: Mapping[str, Parser] = {
    "first": _KEPT,
    "then": _KEPT,
    "times": nodes.integer(0, 10_000, "a number of deaths"),
    "after": _KEPT,
    "period": nodes.written(period, "a duration such as 1d"),
}
SUBKEYS = {"memory": _MEMORY, "compress": _COMPRESS, "limit": _LIMIT, "redact": REDACT}
ACTION: Mapping[str, Parser] = {
    "capture": nodes.choice({str(capture): capture for capture in Capture}),
    "collect": _keys_or_none(COLLECT_KEYS),
    "memory": section(_MEMORY),
    "release": RELEASE,
    "compress": _compress,
    "limit": _keys_or_none(_LIMIT),
    "routine": nodes.choice({str(routine): routine for routine in Routine}),
    "honour_rlimit": nodes.boolean,
    "attributes": _attributes,
    "redact": section(REDACT),
    "logs": _logs,
}


def merged(base: Action, given: dict[str, Any]) -> Action:
    """The action with the given settings over the base, key by key and sub-key by sub-key."""
    changed = dict(given)
    if "memory" in given:
        memory: MemoryChoice = replace(base.memory, **given["memory"])
        changed["memory"] = memory
    if "compress" in given:
        compress: Compress = replace(base.compress, **given["compress"])
        changed["compress"] = compress
    if "redact" in given:
        redact: Redact = replace(base.redact, **given["redact"])
        changed["redact"] = redact
    if given.get("collect") is not None:
        collect = replace(base.collect or Collect(), **given["collect"])
        changed.update(collect=collect, capture=collect.first)
    elif "capture" in given:
        changed["collect"] = None  # the amount that this rule says is for each death
    if given.get("limit") is not None:
        below = base.limit or Action().limit
        assert isinstance(below, Limit)  # the built-in default is a limit
        changed["limit"] = replace(below, **given["limit"])
    return replace(base, **changed)
