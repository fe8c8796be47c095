"""Those variables of a dead process's environment that policy asks for, read from its memory.

All else of the environment stays where it is: it is full of secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collector.linux.procfs import parse_stat

_MOST = 256 << 10  # bytes of an environment that are looked at
_MOST_VALUE = 1024  # characters


def attributes(
    stat: bytes, names: Sequence[str], read: Callable[[int, int], bytes]
) -> dict[str, str]:
    """The variables of these names, as the process has them now, by its /proc/PID/stat."""
    if not names:
        return {}
    try:
        found = parse_stat(stat)
    except (ValueError, IndexError):
        return {}
    size = min(max(found.env_end - found.env_start, 0), _MOST)
    wanted = frozenset(names)
    values: dict[str, str] = {}
    for entry in read(found.env_start, size).split(b"\0") if size else ():
        name, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals and name in wanted:
            values.setdefault(name, value[:_MOST_VALUE])  # the first one counts, as in getenv(3)
    return values
