"""A BPF object's CO-RE relocations against the types of another kernel, without booting it.

libbpf relocates all programs of an object before it loads the first one, and logs what it finds of
each relocation. Loading is judged by the running kernel's verifier and its types: that says
something of programs that reach kernel objects through helpers, where an offset is just a number.
It refuses a plain load at another kernel's offset.

Kernel functions (`__ksym`) are looked up in the running kernel as well, never in the other types.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Collection, Iterator
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = "libbpf.so.1"
FLAVOUR = "___"  # in a type's name: this project's types that some kernels lack

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class _OpenOpts(ctypes.Structure):
    """The head of struct bpf_object_open_opts <bpf/libbpf.h>."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("reserved", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
    )


@dataclass(frozen=True)
class Relocation:
    """One place of a program that depends on the kernel's types."""

    program: str
    kind: str  # as libbpf names it: byte_off, field_exists, type_size, ...
    target: str  # the type and the field in it: "task_struct.exit_state"
    found: bool

    @property
    def may_be_missing(self) -> bool:
        """Whether the program says so, by a flavour in the type's name."""
        return FLAVOUR in re.split(r"[.:]", self.target)[0]


@dataclass(frozen=True)
class Outcome:
    """What libbpf made of an object and another kernel's types."""

    relocations: tuple[Relocation, ...]
    loaded: bool  # the running kernel's verifier took every program
    log: str  # libbpf's messages with those of the verifier

    @property
    def is_relocated(self) -> bool:
        """Whether all relocations were tried: it was loaded, or refused only then."""
        return self.loaded or "BPF program load failed" in self.log

    def unguarded(self) -> list[Relocation]:
        """What the other kernel lacks, and the programs take for granted."""
        return [one for one in self.relocations if not one.found and not one.may_be_missing]

    @property
    def uses_what_is_missing(self) -> bool:
        """Whether the verifier refused a program as it reaches a relocation that found nothing."""
        return "<invalid CO-RE relocation>" in self.log


def relocate(image: Path, btf: Path, only: Collection[str] | None = None) -> Outcome:
    """Relocate an object against the types in the file `btf`, then try to load it (needs root).

    `only` names the programs to take, else all. Nothing stays in the kernel.
    """
    library = ctypes.CDLL(LIBRARY, use_errno=True)
    opts = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), btf_custom_path=str(btf).encode())
    with _log(library) as messages:
        opened = _function(library, "bpf_object__open_file", c_void_p, c_char_p, POINTER(_OpenOpts))
        handle = opened(str(image).encode(), ctypes.byref(opts))
        if not handle:
            raise ValueError(f"{image} is no BPF object: {''.join(messages)}")
        try:
            if only is not None:
                _choose(library, handle, only)
            loaded = _function(library, "bpf_object__load", c_int, c_void_p)(handle) == 0
        finally:
            _function(library, "bpf_object__close", None, c_void_p)(handle)
    log = "".join(messages)
    return Outcome(tuple(parse(log)), loaded, log)


def _choose(library: ctypes.CDLL, handle: int, only: Collection[str]) -> None:
    following = _function(library, "bpf_object__next_program", c_void_p, c_void_p, c_void_p)
    name = _function(library, "bpf_program__name", c_char_p, c_void_p)
    autoload = _function(library, "bpf_program__set_autoload", c_int, c_void_p, c_bool)
    program = following(handle, None)
    while program:
        autoload(program, name(program).decode() in only)
        program = following(handle, program)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


@contextlib.contextmanager
def _log(library: ctypes.CDLL) -> Iterator[list[str]]:
    """All messages of libbpf meanwhile; who had them before has them afterwards."""
    messages: list[str] = []
    vsnprintf: Any = ctypes.CDLL(None).vsnprintf
    vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
    buffer = ctypes.create_string_buffer(1 << 24)  # a verifier's log is one message

    def keep(_level: int, pattern: bytes, arguments: int) -> int:
        vsnprintf(buffer, len(buffer), pattern, arguments)
        messages.append(buffer.value.decode(errors="replace"))
        return 0

    function = _PRINT(keep)
    set_print = _function(library, "libbpf_set_print", c_void_p, c_void_p)
    before = set_print(ctypes.cast(function, c_void_p))
    try:
        yield messages
    finally:
        set_print(before)


_RELOCATION = re.compile(
    r"prog '(?P<program>\w+)': relo #(?P<number>\d+): "
    r"(?:<(?P<kind>\w+)> \[\d+\] \w+ (?P<target>[^ (\n]+)"
    r"|(?P<missing>no matching targets found))"
)


def parse(log: str) -> Iterator[Relocation]:
    """The relocations that a debug log of libbpf reports."""
    wanted: dict[tuple[str, str], tuple[str, str]] = {}
    missing = set()
    for match in _RELOCATION.finditer(log):
        key = (match["program"], match["number"])
        if match["missing"]:
            missing.add(key)
        else:
            wanted[key] = (match["kind"], match["target"])
    for key, (kind, target) in wanted.items():
        yield Relocation(key[0], kind, target, key not in missing)
