"""Numbers as the names of the kernel's headers, from the table that `headers` made at build time.

Without the table, and where it has no name, numbers stay numbers.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

from collector.signals import signal_name
from collector.trace.groups import GROUPS

_PACKAGE = Path(__file__).resolve().parent
FILE = "trace-symbols.json"
# what else may be in a word of flags, as a value: group -> the bits of it, and their group
_INSIDE = {
    "open": (0o3, {0: "O_RDONLY", 1: "O_WRONLY", 2: "O_RDWR"}),
    "map": (0xF, {1: "MAP_SHARED", 2: "MAP_PRIVATE", 3: "MAP_SHARED_VALIDATE"}),
}
_NOTHING = {"prot": "PROT_NONE", "access": "F_OK"}  # what no flag at all is called
# values with flags in their higher bits: group -> the mask of the value, and the flags
_WITH_FLAGS = {
    "socket": (0xFF, {0x800: "SOCK_NONBLOCK", 0x80000: "SOCK_CLOEXEC"}),
    "futex": (0x7F, {0x100: "FUTEX_CLOCK_REALTIME"}),
}
_FUTEX_PRIVATE = 0x80
# what the kernel answers to itself (<linux/errno.h>, not for programs), and what that means
RESTARTS = {
    512: ("ERESTARTSYS", "To be restarted if SA_RESTART is set"),
    513: ("ERESTARTNOINTR", "To be restarted"),
    514: ("ERESTARTNOHAND", "To be restarted if no handler"),
    516: ("ERESTART_RESTARTBLOCK", "Interrupted by signal"),
}


class Symbols:
    """The groups of constants. `groups`: name of the group -> name -> value."""

    def __init__(self, groups: dict[str, dict[str, int]] | None = None) -> None:
        self._groups = groups or {}
        self._values = {
            group: {value: name for name, value in reversed(names.items())}
            for group, names in self._groups.items()
        }

    @classmethod
    def built(cls) -> Symbols:
        """The table that was made at build time; an empty one if there is none."""
        for path in (_PACKAGE / FILE, _PACKAGE.parents[1] / "build" / FILE):
            try:
                return cls(json.loads(path.read_text()))
            except OSError:
                continue
        return cls()

    @cached_property
    def _errors(self) -> dict[int, str]:
        return self._values.get("errno", {})

    def error(self, number: int) -> str:
        """`ENOENT (No such file or directory)` for 2."""
        if number in RESTARTS:
            name, text = RESTARTS[number]
        else:
            name, text = self._errors.get(number, f"errno {number}"), os.strerror(number)
        return f"{name} ({text})"

    def error_number(self, name: str) -> int | None:
        """2 for `ENOENT`."""
        return self._groups.get("errno", {}).get(name)

    def text(self, group: str, word: int) -> str:
        """An argument of a group of constants, as strace writes it."""
        value = _signed(word)
        if group == "signal":
            return signal_name(value) if 0 < value <= 64 else str(value)
        if group == "clone":
            return self._clone(word)
        if group == "dirfd":
            return self._values.get(group, {}).get(value, str(value))
        if group == "descriptor":  # those of open(2) that pipe2(2) and dup3(2) take
            return self._flags("open", word, access=False)
        if group in _WITH_FLAGS:
            return self._value_with_flags(group, word & 0xFFFFFFFF)
        if group not in _FLAG_GROUPS:
            values = self._values.get(group, {})
            found = values.get(value, values.get(word & 0xFFFFFFFF))
            return found or (hex(word & 0xFFFFFFFF) if value > 9 else str(value))
        return self._flags(group, word)

    def _value_with_flags(self, group: str, word: int) -> str:
        mask, flags = _WITH_FLAGS[group]
        value = word & mask
        name = self._values.get(group, {}).get(value)
        if name is None:
            return hex(word)
        rest = word & ~mask
        if group == "futex" and rest & _FUTEX_PRIVATE:
            name, rest = f"{name}_PRIVATE", rest & ~_FUTEX_PRIVATE
        parts = [name, *(flag for bit, flag in flags.items() if rest & bit)]
        rest &= ~sum(flags)
        return "|".join([*parts, hex(rest)] if rest else parts)

    def _flags(self, group: str, word: int, *, access: bool = True) -> str:
        values, rest = self._values.get(group, {}), word & 0xFFFFFFFF
        mask, inside = _INSIDE.get(group, (0, {})) if access else (0, {})
        parts = []
        if mask and values:
            parts.append(inside.get(rest & mask, hex(rest & mask)))
            rest &= ~mask
        # those of several bits first: O_SYNC is more than O_DSYNC
        for value in sorted(values, key=lambda value: (-value.bit_count(), value)):
            if value and not value & mask and rest & value == value:
                parts.append(values[value])
                rest &= ~value
        if rest:
            parts.append(hex(rest))
        return "|".join(parts) or (_NOTHING.get(group, "0") if values else "0")

    def _clone(self, word: int) -> str:
        number = word & 0xFF
        text = self._flags("clone", word & ~0xFF)
        if not number:
            return text
        return signal_name(number) if text == "0" else f"{text}|{signal_name(number)}"


_FLAG_GROUPS = frozenset(name for name, group in GROUPS.items() if group.flags)


def _signed(word: int) -> int:
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
