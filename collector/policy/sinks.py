"""The `sinks` section of a policy: who is told of each death beside the store."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping

import yaml

from collector.policy import yamlnodes as nodes
from collector.policy.types import OtlpSettings
from collector.policy.units import parse_duration, quote
from collector.policy.yamlnodes import Document, Parser, Problem

_MOST_HEADERS = 32
_LONGEST_VALUE = 8192
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")  # a token of RFC 9110
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OWN = {"content-type", "content-length", "host", "connection", "transfer-encoding"}
_SUCH = "expected an address such as http://127.0.0.1:4318/v1/logs"
_LEAST, _MOST = 0.1, 60.0  # seconds


def _endpoint(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, or a bracket too much
        whole = None
    if not whole or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{quote(text)}: {_SUCH}")
    if parts.username is not None:
        raise ValueError(f"no user or password in the address; {_SUCH}, and `headers`")
    if parts.path in ("", "/"):
        raise ValueError(f"{quote(text)} has no path; a collector takes logs at /v1/logs")
    return text


def _timeout(text: str) -> float:
    seconds = parse_duration(text)
    if not _LEAST <= seconds <= _MOST:
        raise ValueError("expected a duration from 100ms to 1m, such as 10s")
    return seconds


def _headers(doc: Document, node: yaml.Node, path: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, yaml.MappingNode):
        raise Problem(node, path, f"expected headers by name, not {nodes.describe(node)}")
    if len(node.value) > _MOST_HEADERS:
        raise Problem(node, path, f"expected at most {_MOST_HEADERS} headers")
    found: dict[str, str] = {}
    for key_node, value_node in node.value:
        name = nodes.text(doc, key_node, path)
        value = nodes.text(doc, value_node, f"{path}.{name}")
        if not _NAME.fullmatch(name) or name.lower() in _OWN:
            raise Problem(key_node, path, f"{quote(name)} is no header that can be set")
        if not _VALUE.fullmatch(value) or len(value) > _LONGEST_VALUE:
            raise Problem(value_node, f"{path}.{name}", "expected printable ASCII text")
        if name.lower() in (known.lower() for known in found):
            raise Problem(key_node, path, f"{quote(name)} is given twice")
        found[name] = value
    return tuple(found.items())


OTLP: Mapping[str, Parser] = {
    "endpoint": nodes.written(_endpoint, "an address"),
    "headers": _headers,
    "timeout": nodes.written(_timeout, "a duration such as 10s"),
}


def otlp(doc: Document, node: yaml.Node, path: str) -> OtlpSettings | None:
    """None: `off`."""
    if nodes.is_off(node):
        return None
    given = nodes.mapping(doc, node, path, OTLP)
    if not any(key.value == "endpoint" for key, _ in node.value):
        raise Problem(node, path, f"has no `endpoint`; {_SUCH}")
    # (of one that is wrong the problem is known already)
    return OtlpSettings(**given) if "endpoint" in given else None
