"""The keys of a configuration file that are about pods of Kubernetes, parsed."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from collector.policy import yamlnodes as nodes
from collector.policy.types import PodDefault
from collector.policy.units import quote
from collector.policy.yamlnodes import Document, Parser, Problem

_MOST = 32
_LONGEST_NAME = 317  # of a label: prefix, `/`, name

OF_PODS = ("namespace", "pod", "image", "labels", "annotations")


def _texts(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    return nodes.items(doc, node, path, nodes.text)


def _by_name(doc: Document, node: yaml.Node, path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Globs by the name of a label or an annotation, all of which must hold."""
    such = "expected globs by name, such as {app: web}"
    if not isinstance(node, yaml.MappingNode):
        raise Problem(node, path, f"{such}, not {nodes.describe(node)}")
    if not node.value:
        raise Problem(node, path, f"has no name; {such}")
    if len(node.value) > _MOST:
        raise Problem(node, path, f"expected at most {_MOST} names")
    found: dict[str, tuple[str, ...]] = {}
    for key_node, value_node in node.value:
        name = nodes.text(doc, key_node, path)
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise Problem(key_node, path, f"{quote(name)} is no name of a label")
        if name in found:
            raise Problem(key_node, path, f"{quote(name)} is given twice")
        found[name] = _texts(doc, value_node, f"{path}.{name}")
    return tuple(found.items())


MATCH: Mapping[str, Parser] = {
    "namespace": _texts,
    "pod": _texts,
    "image": _texts,
    "labels": _by_name,
    "annotations": _by_name,
}
DEFAULT = nodes.choice({str(default): default for default in PodDefault})
