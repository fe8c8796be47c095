"""YAML text to a bounded tree of nodes, and checked values out of its scalars.

Knows YAML (through PyYAML, in pure Python so that messages are the same everywhere), lines and
key paths; knows nothing of what a policy contains: that is `load`. Problems are collected, so
that a file is reported on as a whole. Only scalars, sequences and mappings with text keys are
used; no Python object is ever made from a tag.

A plain scalar is what YAML 1.1 says it is: `off` is a boolean, `~` is null, `12` a number. It is
taken as text only where it reads as text; otherwise the message says to quote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Never

import yaml

from collector.errors import CorewardError, PolicyError
from collector.policy.units import did_you_mean, quote

MAX_BYTES = 1 << 20
MAX_NODES = 50_000  # with aliases followed
MAX_DEPTH = 20  # of nesting; a policy needs 6
MAX_PROBLEMS = 100  # reported; more would help nobody

_TAG = "tag:yaml.org,2002:"
_PLAIN_KEY = re.compile("[A-Za-z_][A-Za-z0-9_-]{0,39}")
_HALF = re.compile("[\ud800-\udfff]")  # of a pair of UTF-16: "\ud800" in YAML is one
_INTEGER = re.compile("0|-?[1-9][0-9]{0,18}|0x[0-9a-fA-F]{1,16}")

Parser = Callable[["Document", yaml.Node, str], Any]


class PolicyErrors(PolicyError):
    """All that is wrong with one file; the message has one line per problem."""

    def __init__(self, problems: tuple[PolicyError, ...]) -> None:
        first = problems[0]
        super().__init__(first.file, first.line, first.key, first.problem)
        self.args = ("\n".join(str(problem) for problem in problems),)
        self.problems = problems


class Problem(CorewardError):
    """One value is wrong. Raised by parsers, collected by `mapping`, `items` and `attempt`."""

    def __init__(self, node: yaml.Node | None, path: str | None, text: str) -> None:
        super().__init__(text)
        self.node, self.path, self.text = node, path, text


class Document:
    """One file: its problems so far, and its root node (None: nothing but comments)."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._problems: list[PolicyError] = []
        self.regexes: list[tuple[yaml.Node, str, str]] = []  # to be checked: path, expression
        self.root = self._compose(text)

    def problem(self, node: yaml.Node | None, path: str | None, text: str) -> None:
        """Remember a problem at this node."""
        line = node.start_mark.line + 1 if node is not None else None
        self._problems.append(PolicyError(self.source, line, path, text))

    def raise_problems(self) -> None:
        """Raise PolicyErrors if there was any problem, in the order of lines."""
        if not self._problems:
            return
        ordered = sorted(self._problems, key=lambda problem: problem.line or 0)
        if len(ordered) > MAX_PROBLEMS:
            left = len(ordered) - MAX_PROBLEMS
            more = PolicyError(self.source, None, None, f"and {left} more problems")
            ordered = [*ordered[:MAX_PROBLEMS], more]
        raise PolicyErrors(tuple(ordered))

    def attempt(self, parse: Parser, node: yaml.Node, path: str) -> tuple[Any, bool]:
        """(value, True), or (None, False) with the problem remembered."""
        try:
            return parse(self, node, path), True
        except Problem as problem:
            self.problem(problem.node, problem.path, problem.text)
            return None, False

    def _fail(self, line: int | None, text: str) -> Never:
        raise PolicyErrors((PolicyError(self.source, line, None, text),))

    def _compose(self, text: str) -> yaml.Node | None:
        if len(text) > MAX_BYTES:
            self._fail(None, f"is larger than {MAX_BYTES >> 20} MiB")
        try:
            loader = _Loader(text)
            try:
                root: yaml.Node | None = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._fail(mark.line + 1 if mark else None, _syntax(error))
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._fail(line, f"not YAML: character U+{int(error.character):04X} is not allowed")
        except (ValueError, OverflowError) as error:
            # PyYAML lets these through for absurd escapes ("\UFFFFFFFF") and version numbers
            self._fail(None, f"not YAML: {error}")
        if root is not None and _expanded(root, MAX_NODES, MAX_DEPTH) > MAX_NODES:
            self._fail(None, f"more than {MAX_NODES} values once its aliases are followed")
        return root


class _Loader(yaml.SafeLoader):
    """Composes nodes, refusing deep nesting and masses of nodes while it reads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes += 1
        self.depth += 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            many = f"more than {MAX_NODES} values"
            problem = many if self.nodes > MAX_NODES else f"nested more than {MAX_DEPTH} deep"
            raise yaml.composer.ComposerError(None, None, problem, self._here())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _here(self) -> Any:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]


def _expanded(node: yaml.Node, most: int, depth: int) -> int:
    """Number of nodes with aliases followed; stops soon after `most`. Cycles count as too many."""
    if depth == 0:
        return most + 1
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                total += _expanded(part, most - total, depth - 1)
                if total > most:
                    return total
    return total


# What of a parser's message tells a usual mistake, and what to do about it
_HINTS = {
    "an alias": "a text which begins with * must be quoted",
    "'\\t'": "indent with blanks, not with tabs",
    "<block end>": "indent it as the lines that it belongs to",
    "mapping values": "quote a text that has `: ` in it; a key begins a line",
    "a flow": "a bracket may not be closed",
}


def _syntax(error: yaml.MarkedYAMLError) -> str:
    text = " ".join(part for part in (error.context, error.problem) if part)
    begin, end = error.context_mark, error.problem_mark
    since = f" (begun on line {begin.line + 1})" if begin and end and begin.line < end.line else ""
    hint = next((f"; {hint}" for part, hint in _HINTS.items() if part in text), "")
    return f"not YAML: {text}{since}{hint}"


# Parsers. Each takes (document, node, key path), returns a typed value or raises Problem.


def mapping(
    doc: Document, node: yaml.Node, path: str, fields: Mapping[str, Parser]
) -> dict[str, Any]:
    """The values of a mapping by key. Problems with single keys are remembered, not raised.

    No value at all (`rules:` with everything under it commented out) is an empty mapping.
    """
    if is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode) or node.tag != f"{_TAG}map":
        raise Problem(
            node, path or None, f"expected keys ({', '.join(fields)}), not {describe(node)}"
        )
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            doc.problem(key_node, path or None, f"a key must be text, not {describe(key_node)}")
            continue
        key = key_node.value
        key_path = f"{path}.{key}" if path else key
        if key not in fields:
            shown = key_path if _PLAIN_KEY.fullmatch(key) else path or None
            near = did_you_mean(key, fields) or f"; known here: {', '.join(fields)}"
            doc.problem(key_node, shown, f"unknown key {quote(key)}{near}")
            continue
        if key in lines:
            doc.problem(key_node, key_path, f"already given on line {lines[key]}")
            continue
        lines[key] = key_node.start_mark.line + 1
        value, good = doc.attempt(fields[key], value_node, key_path)
        if good:
            values[key] = value
    return values


def items(doc: Document, node: yaml.Node, path: str, parse: Parser) -> tuple[Any, ...]:
    """The members of a list; a single value stands for a list of one."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        raise Problem(node, path, "an empty list never matches; leave the key out for any value")
    return members(doc, nodes, path, parse)


def members(doc: Document, nodes: list[yaml.Node], path: str, parse: Parser) -> tuple[Any, ...]:
    """The parsed nodes; with several, problems name the index (`path[2]`)."""
    values = []
    for index, node in enumerate(nodes):
        where = f"{path}[{index}]" if len(nodes) > 1 else path
        value, good = doc.attempt(parse, node, where)
        if good:
            values.append(value)
    return tuple(values)


def text(doc: Document, node: yaml.Node, path: str) -> str:
    """Text that is not empty, has no NUL and is at most 4096 characters."""
    value = scalar(node, path, "text")
    if node.tag != f"{_TAG}str":
        raise Problem(node, path, f"is not text to YAML; quote it: {quote(value)}")
    if not value:
        raise Problem(node, path, "cannot be empty")
    if len(value) > 4096 or "\0" in value:
        raise Problem(node, path, "must be at most 4096 characters and hold no NUL")
    return value


def integer(low: int, high: int, what: str) -> Parser:
    """Parser of a whole number from low to high, both inclusive."""

    def parse(doc: Document, node: yaml.Node, path: str) -> int:
        value = scalar(node, path, what)
        right = f"expected {what} from {low} to {high}"
        if not _INTEGER.fullmatch(value):
            raise Problem(node, path, f"{right}, not {describe(node)}")
        number = int(value, 0)
        if not low <= number <= high:
            raise Problem(node, path, f"{right}, not {value}")
        return number

    return parse


def boolean(doc: Document, node: yaml.Node, path: str) -> bool:
    """true or false, in any of YAML 1.1's spellings."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}bool":
        raise Problem(node, path, f"expected true or false, not {describe(node)}")
    return node.value.lower() in ("true", "yes", "on")


def written(parse: Callable[[str], Any], what: str) -> Parser:
    """Parser of a scalar by its characters; `parse` raises ValueError with what would be right."""

    def parse_node(doc: Document, node: yaml.Node, path: str) -> Any:
        value = scalar(node, path, what)
        try:
            return parse(value)
        except ValueError as error:
            raise Problem(node, path, str(error)) from None

    return parse_node


def choice(values: Mapping[str, Any]) -> Parser:
    """Parser of one word out of these."""

    def parse(doc: Document, node: yaml.Node, path: str) -> Any:
        known = ", ".join(values)
        word = scalar(node, path, f"one of {known}")
        if word not in values:
            near = did_you_mean(word, values)
            raise Problem(node, path, f"{quote(word)} is not one of {known}{near}")
        return values[word]

    return parse


def scalar(node: yaml.Node, path: str, what: str) -> str:
    """The characters of a scalar that has a value; they can be encoded."""
    if is_null(node):
        raise Problem(node, path, f"has no value; expected {what}")
    if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(_TAG):
        raise Problem(node, path, f"expected {what}, not {describe(node)}")
    value: str = node.value
    if _HALF.search(value):
        raise Problem(node, path, f"{quote(value)}: U+D800 to U+DFFF are no characters")
    return value


def is_null(node: yaml.Node) -> bool:
    """No value, `null` or `~`."""
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


def is_off(node: yaml.Node) -> bool:
    """`off`, `no`, `false` (booleans of YAML 1.1) or `none`."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    word = node.value.lower()
    return word == "none" or (node.tag == f"{_TAG}bool" and word in ("off", "no", "false"))


def describe(node: yaml.Node) -> str:
    """What a node is, for a message."""
    if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_TAG):
        return quote(node.value)
    if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
        return f"a value with the tag {quote(node.tag)}"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def present(node: yaml.Node) -> dict[str, yaml.Node]:
    """The keys that a mapping node has, whether or not their values were good."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
