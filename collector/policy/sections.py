"""The sections of a policy about the agent itself: its store, metrics, bounds and so on."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from collector.model import Backend
from collector.policy import podkeys
from collector.policy import yamlnodes as nodes
from collector.policy.parsers import (
    LEAST_HELD,
    MOST_HELD,
    RELEASE,
    SIZE,
    absolute_path,
    between,
    group,
    or_none,
    size_or_auto,
    size_or_part,
)
from collector.policy.sinks import otlp
from collector.policy.types import Takeover
from collector.policy.units import parse_duration, quote
from collector.policy.yamlnodes import Document, Parser, Problem
from collector.signature.types import MOST_GLOBS, MOST_OWN_FRAMES

_LEAST_AGE, _MOST_AGE = 3600.0, 10_000 * 86400.0
_MOST_RECORDS = 10_000_000
_LEAST_PATIENCE, _MOST_PATIENCE = 0.05, 60.0  # seconds
_LEAST_BIDS, _MOST_BIDS = 0.005, 1.0  # seconds
_LEAST_SHARED = 0.01  # seconds
_LONGEST_CAPTURE = 86400.0
_LONGEST_EXPLANATION = 3600.0
_LONGEST_SOCKET = 107  # bytes of a path, unix(7)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})")


def _root(doc: Document, node: yaml.Node, path: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.value == "/":
        return "/"
    return str(absolute_path(doc, node, path))


def _socket(doc: Document, node: yaml.Node, path: str) -> Path | None:
    if nodes.is_off(node):
        return None
    found = absolute_path(doc, node, path)
    if len(os.fsencode(found)) > _LONGEST_SOCKET:
        raise Problem(node, path, f"expected a path of at most {_LONGEST_SOCKET} bytes")
    return found


def _listen(doc: Document, node: yaml.Node, path: str) -> tuple[str, int] | None:
    if nodes.is_off(node):
        return None
    right = 'expected address:port such as "127.0.0.1:9836", or off'
    value = nodes.scalar(node, path, right)
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise Problem(node, path, f"{quote(value)} has no port from 0 to 65535; {right}")
    if not host:
        every = f'"0.0.0.0:{port}" listens on every interface, "127.0.0.1:{port}" on this host'
        raise Problem(node, path, f"{quote(value)} has no address; {every}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.IPv6Address(bare) if ":" in host or bare != host else None
    except ValueError:
        raise Problem(node, path, f"{quote(host)} is not an IPv6 address; {right}") from None
    if ":" in host and bare == host:
        raise Problem(node, path, f'write an IPv6 address in brackets: "[{host}]:{port}"')
    if ":" not in host and not _HOST.fullmatch(host):
        raise Problem(node, path, f"{quote(host)} is not an address; {right}")
    return bare, int(port)


def _age(text: str) -> float:
    seconds = parse_duration(text)
    if not _LEAST_AGE <= seconds <= _MOST_AGE:
        raise ValueError(f"expected a duration from 1h to 10000d, not {quote(text)}")
    return seconds


def _takeover(doc: Document, node: yaml.Node, path: str) -> Takeover:
    if isinstance(node, yaml.ScalarNode):
        if node.value in (Takeover.KEEP, Takeover.YIELD):
            return Takeover(node.value)
        if node.tag == "tag:yaml.org,2002:bool":
            return Takeover.YIELD if nodes.boolean(doc, node, path) else Takeover.NO
    right = "expected true, false, keep or yield"
    raise Problem(node, path, f"{right}, not {nodes.describe(node)}")


def _shared(text: str) -> float:
    seconds = parse_duration(text)
    if not _LEAST_SHARED <= seconds <= _MOST_PATIENCE:
        raise ValueError("expected a duration from 10ms to 1m")
    return seconds


def _share(text: str) -> float:
    if not re.fullmatch("[0-9]{1,2}%", text):
        raise ValueError(f"{quote(text)}: expected a share of free memory, 0% to 99%")
    return int(text[:-1]) / 100


def _function_globs(doc: Document, node: yaml.Node, path: str) -> tuple[str, ...]:
    if isinstance(node, yaml.SequenceNode) and len(node.value) > MOST_GLOBS:
        raise Problem(node, path, f"expected at most {MOST_GLOBS} globs, not {len(node.value)}")
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    return nodes.items(doc, node, path, nodes.written(_function_glob, "a glob of functions"))


def _function_glob(text: str) -> str:
    if not text.strip("*?! ") or len(text) > 200:
        right = 'expected a glob of function names such as "my_fatal*", at most 200 characters'
        raise ValueError(f"{quote(text)}: {right}; all functions are none")
    return text


SECTIONS: Mapping[str, Mapping[str, Parser]] = {
    "store": {
        "path": absolute_path,
        "min_free": SIZE,
        "max_size": size_or_part,
        "max_records": or_none(nodes.integer(1, _MOST_RECORDS, "a number of records")),
        "max_age": or_none(nodes.written(_age, "a duration such as 90d")),
        "max_core_age": or_none(nodes.written(_age, "a duration such as 14d")),
        "keep_free": size_or_part,
        "service_max_size": or_none(SIZE),
        "service_max_records": or_none(nodes.integer(1, _MOST_RECORDS, "a number of records")),
    },
    "metrics": {"listen": _listen},
    "hold": {
        "backend": nodes.choice({str(backend): backend for backend in Backend}),
        "takeover": _takeover,
        "patience": between(_LEAST_PATIENCE, _MOST_PATIENCE, "50ms to 1m", "100ms"),
        "bids": between(_LEAST_BIDS, _MOST_BIDS, "5ms to 1s", "50ms"),
        "max": between(LEAST_HELD, MOST_HELD, "100ms to 1h", "30s"),
        "group": group,
    },
    "release": {
        "default": RELEASE,
        "max_pinned": size_or_auto,
        "max_pins": nodes.integer(1, 1024, "a number of pins"),
        "copy": nodes.written(_share, "a share such as 50%"),
        "shared": nodes.written(_shared, "a duration such as 50ms"),
        "lend": nodes.boolean,
    },
    "capture": {
        "workers": nodes.integer(1, 64, "a number of workers"),
        "queue": nodes.integer(1, 100_000, "a number of captures"),
        "max_time": between(1.0, _LONGEST_CAPTURE, "1s to 1d", "10m"),
        "max_read": size_or_auto,
        "explain_time": between(1.0, _LONGEST_EXPLANATION, "1s to 1h", "20s"),
    },
    "signature": {
        "sentinels": _function_globs,
        "irrelevant": _function_globs,
        "prefixes": _function_globs,
        "common": _function_globs,
        "frames": nodes.integer(1, MOST_OWN_FRAMES, "a number of functions"),
    },
    "recorder": {
        "memory": SIZE,
        "processes": nodes.integer(1, 10_000, "a number of processes"),
    },
    "sinks": {"journal": nodes.boolean, "otlp": otlp},
    "health": {"socket": _socket, "group": group},
    "kubernetes": {"root": _root, "default": podkeys.DEFAULT},
}
