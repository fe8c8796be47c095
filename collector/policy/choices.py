"""Which mappings a policy chooses: by globs of their paths, or by kind."""

from __future__ import annotations

import re

import yaml

from collector.policy import yamlnodes as nodes
from collector.policy.types import MappingKind
from collector.policy.units import did_you_mean, quote
from collector.policy.yamlnodes import Document, Problem

_GLOB = re.compile(r"[*?/\[]")


def _mapping_glob(doc: Document, node: yaml.Node, path: str) -> str:
    value = nodes.text(doc, node, path)
    kinds = [str(kind) for kind in MappingKind]
    if value.strip("[]") in kinds and value not in kinds:
        raise Problem(node, path, f"write the kind without brackets: {value.strip('[]')}")
    if value.startswith("[") and not value.startswith("[["):
        right = f'"[{value[:1]}]{value[1:]}"'
        raise Problem(node, path, f"brackets are a character class in a glob; write {right}")
    if value not in kinds and not _GLOB.search(value):
        near = did_you_mean(value, kinds)
        raise Problem(
            node, path, f"{quote(value)} is neither a path glob nor one of {', '.join(kinds)}{near}"
        )
    return value


def choices(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    """A list of mapping globs; an empty one lifts what the defaults list."""
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    return nodes.items(doc, node, path, _mapping_glob)
