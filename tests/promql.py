"""Which metrics, labels and ranges a PromQL expression uses: as much of it as tests need."""

from __future__ import annotations

import re
from typing import NamedTuple

_METRIC = re.compile(r"\b((?:coreward|process)_\w+|up|\w+:coreward_\w+:\w+)\b(?:\{([^}]*)\})?")
_SUFFIX = re.compile(r"_(total|info|bucket|count|sum)$")


class Used(NamedTuple):
    """A metric as it is used: with the labels of its selector."""

    name: str
    labels: frozenset[str]

    @property
    def family(self) -> str:
        """Without the suffix of its samples."""
        return _SUFFIX.sub("", self.name)


def used(expression: str) -> list[Used]:
    return [
        Used(name, frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector or "")))
        for name, selector in _METRIC.findall(expression)
    ]


def ranges(expression: str) -> list[str]:
    """What stands in brackets after a selector."""
    return re.findall(r"\[([^\]]+)\]", re.sub(r'"[^"]*"', '""', expression))
