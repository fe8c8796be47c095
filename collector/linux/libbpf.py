"""libbpf.so.1 through ctypes: objects, maps, pins, iterators, and the kernel's types as C.

The only module that calls libbpf (>= 1.0; <bpf/libbpf.h>, <bpf/bpf.h>, <bpf/btf.h>) or knows
numbers of bpf(2). It knows nothing of what the programs do. Descriptors are plain ints that
the caller closes; failures are ProbeError, or OSError where the caller may want the errno.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from ctypes import c_bool, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from collector.errors import ProbeError
from collector.linux import verifier

log = logging.getLogger(__name__)

LIBRARY = "libbpf.so.1"
BPF_ANY = 0  # <linux/bpf.h>
BPF_TRACE_FENTRY = 24  # enum bpf_attach_type
BPF_TRACE_ITER = 28
INSTRUCTION_BYTES = 8  # struct bpf_insn
RECURSION_MISSES_OFFSET = 208  # of that member of struct bpf_prog_info
BTF_KIND_PTR = 2  # <linux/btf.h>
BTF_KIND_STRUCT = 4
BTF_KIND_UNION = 5
BTF_KIND_ENUM = 6
BTF_KIND_TYPEDEF = 8
BTF_KIND_FUNC = 12
BTF_KIND_ENUM64 = 19
BTF_TYPE_BYTES = 12  # sizeof(struct btf_type)

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_EMIT = ctypes.CFUNCTYPE(None, c_void_p, c_char_p, c_void_p)


class _IterInfo(ctypes.Structure):
    """The member `task` of union bpf_iter_link_info."""

    _fields_ = (("tid", c_uint32), ("pid", c_uint32), ("pid_fd", c_uint32), ("pad", c_uint32))


class _LinkCreateOpts(ctypes.Structure):
    """The head of struct bpf_link_create_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    )


class _ProgramLoadOpts(ctypes.Structure):
    """The head of struct bpf_prog_load_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
    )


class MapInfo(NamedTuple):
    """The head of struct bpf_map_info."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int


class _Library:
    """The functions, with their types; and the last messages of libbpf and the verifier."""

    def __init__(self) -> None:
        try:
            self.dll = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as error:
            raise ProbeError(
                f"{LIBRARY} cannot be loaded ({error}): install libbpf1 (Debian, Ubuntu) or libbpf"
            ) from error
        self.messages: list[str] = []
        libc = ctypes.CDLL(None)
        self._vasprintf: Any = libc.vasprintf
        self._vasprintf.argtypes = [c_void_p, c_char_p, c_void_p]
        self._free: Any = libc.free
        self._free.argtypes = [c_void_p]
        self._print = _PRINT(self._on_print)
        self.call("libbpf_set_print", c_void_p, _PRINT)(self._print)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self.dll, name)
        function.restype = result
        function.argtypes = arguments
        return function

    def format(self, pattern: bytes, arguments: int) -> str:
        """What vprintf would print of `pattern`; `arguments` is the address of a va_list."""
        made = c_void_p()
        if self._vasprintf(ctypes.byref(made), pattern, arguments) < 0 or not made.value:
            return ""
        try:
            return ctypes.string_at(made.value).decode("utf-8", "replace")
        finally:
            self._free(made)

    def _on_print(self, level: int, pattern: bytes, arguments: int) -> int:
        if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
            said = self.format(pattern, arguments).strip().removeprefix("libbpf: ")
            self.messages = [*self.messages[-7:], said]
            log.debug("%s", said)
        return 0


@cache
def _library() -> _Library:
    return _Library()


@cache
def _function(name: str, result: Any, *arguments: Any) -> Any:
    return _library().call(name, result, *arguments)


def _errno(result: int) -> int:
    """libbpf 1.x returns -errno and sets errno as well."""
    return -result if result < 0 else ctypes.get_errno()


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = _errno(result)
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)


def version() -> tuple[int, int]:
    """(major, minor) of the library."""
    major = _function("libbpf_major_version", c_uint32)
    minor = _function("libbpf_minor_version", c_uint32)
    return int(major()), int(minor())


def _last_messages() -> str:
    """What libbpf or the verifier said last, in a line; all of it is in the log at level debug."""
    messages = _library().messages
    if any("\n" in message for message in messages):
        return verifier.explain("\n".join(messages))
    return " | ".join(messages)


class Object:
    """A BPF object file, loaded into the kernel on entry and unloaded on exit (bpf(2)).

    Programs and maps that were pinned or attached meanwhile stay.
    """

    def __init__(
        self,
        image: bytes,
        name: str,
        without: Collection[str] = (),
        entries: Mapping[str, int] | None = None,
    ) -> None:
        """`without`: programs that are not loaded. `entries`: max_entries of maps by name, where
        they are to differ from the source's (of a ring: its bytes)."""
        self._image = image
        self._name = name
        self._without = without
        self._entries = entries or {}
        self._handle: int | None = None

    def __enter__(self) -> Self:
        library = _library()
        library.messages = []
        opened = _function("bpf_object__open_mem", c_void_p, c_void_p, c_size_t, c_void_p)
        handle = opened(self._image, len(self._image), None)
        if not handle:
            raise ProbeError(f"{self._name} is no BPF object: {_last_messages()}")
        for program in self._without:
            find = _function("bpf_object__find_program_by_name", c_void_p, c_void_p, c_char_p)
            autoload = _function("bpf_program__set_autoload", c_int, c_void_p, c_bool)
            if found := find(handle, program.encode()):
                autoload(found, False)
        for map_name, count in self._entries.items():
            find = _function("bpf_object__find_map_by_name", c_void_p, c_void_p, c_char_p)
            resize = _function("bpf_map__set_max_entries", c_int, c_void_p, c_uint32)
            resize(find(handle, map_name.encode()), count)
        result = _function("bpf_object__load", c_int, c_void_p)(handle)
        if result < 0:
            reason = os.strerror(_errno(result))
            detail = _last_messages()
            _function("bpf_object__close", None, c_void_p)(handle)
            raise ProbeError(f"the kernel refused {self._name}: {reason}: {detail}")
        self._handle = handle
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _function("bpf_object__close", None, c_void_p)(self._handle)
        self._handle = None

    def programs(self) -> Iterator[tuple[str, int]]:
        """(name, descriptor) of each program; the descriptors belong to the object."""
        following = _function("bpf_object__next_program", c_void_p, c_void_p, c_void_p)
        name = _function("bpf_program__name", c_char_p, c_void_p)
        descriptor = _function("bpf_program__fd", c_int, c_void_p)
        program = following(self._handle, None)
        while program:
            if name(program).decode() not in self._without:
                yield name(program).decode(), descriptor(program)
            program = following(self._handle, program)

    def map(self, name: str) -> int:
        """The descriptor of a map; it belongs to the object."""
        find = _function("bpf_object__find_map_fd_by_name", c_int, c_void_p, c_char_p)
        return _checked(find(self._handle, name.encode()), f"map {name} of {self._name}")


def mount_bpffs(where: Path) -> None:
    """Mount a BPF file system for root alone (mount(2)). ProbeError if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(where), b"bpf", 0, b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise ProbeError(f"{where}: a bpffs cannot be mounted: {reason}")


def attach_raw_tracepoint(tracepoint: str, program: int) -> int:
    """Attach a program; returns the descriptor of the link (BPF_RAW_TRACEPOINT_OPEN)."""
    opened = _function("bpf_raw_tracepoint_open", c_int, c_char_p, c_int)
    return _checked(opened(tracepoint.encode(), program), f"attach to raw tracepoint {tracepoint}")


def attach_function(program: int) -> int:
    """Attach an fentry or a tp_btf program where it says; returns the descriptor of the link."""
    opened = _function("bpf_raw_tracepoint_open", c_int, c_char_p, c_int)
    return _checked(opened(None, program), "attach to a function of the kernel")


class ProgramType(enum.IntEnum):
    """Of enum bpf_prog_type, what is used here."""

    PERF_EVENT = 7
    RAW_TRACEPOINT = 17
    TRACING = 26


def load_program(
    kind: ProgramType, code: bytes, iterator: str | None = None, function: str | None = None
) -> int:
    """Load raw instructions; returns the program's descriptor (BPF_PROG_LOAD).

    `iterator` names the target of a task iterator ("task", "task_vma"), `function` that of a
    program for `attach_function`. OSError if refused.
    """
    opts = _ProgramLoadOpts(ctypes.sizeof(_ProgramLoadOpts))
    target = iterator or function
    if target is not None:
        find = _function("libbpf_find_vmlinux_btf_id", c_int, c_char_p, c_int)
        opts.expected_attach_type = BPF_TRACE_ITER if iterator else BPF_TRACE_FENTRY
        number = find(target.encode(), opts.expected_attach_type)
        opts.attach_btf_id = _checked(number, f"the kernel's {target}")
    load = _function(
        "bpf_prog_load", c_int, c_int, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p
    )
    count = len(code) // INSTRUCTION_BYTES
    made = load(kind, b"trial", b"Dual BSD/GPL", code, count, ctypes.byref(opts))
    return _checked(made, f"load a {kind.name.lower()} program")


def pin(descriptor: int, path: str) -> None:
    """Give a map, program or link a name in bpffs (BPF_OBJ_PIN)."""
    call = _function("bpf_obj_pin", c_int, c_int, c_char_p)
    _checked(call(descriptor, os.fsencode(path)), f"pin {path}")


def get_pin(path: str) -> int:
    """A descriptor of what is pinned at a path of bpffs (BPF_OBJ_GET)."""
    call = _function("bpf_obj_get", c_int, c_char_p)
    return _checked(call(os.fsencode(path)), f"open pin {path}")


def map_info(descriptor: int) -> MapInfo:
    """What the kernel says of a map (BPF_OBJ_GET_INFO_BY_FD)."""
    buffer = (c_uint32 * 64)()
    length = c_uint32(ctypes.sizeof(buffer))
    call = _function("bpf_obj_get_info_by_fd", c_int, c_int, c_void_p, c_void_p)
    _checked(call(descriptor, ctypes.byref(buffer), ctypes.byref(length)), "map info")
    return MapInfo(*buffer[:5])


def recursion_misses(program: int) -> int:
    """How often a program was not run, because it ran on that CPU already (Linux >= 5.12)."""
    buffer = ctypes.create_string_buffer(RECURSION_MISSES_OFFSET + 8)
    length = c_uint32(len(buffer))
    call = _function("bpf_obj_get_info_by_fd", c_int, c_int, c_void_p, c_void_p)
    _checked(call(program, ctypes.byref(buffer), ctypes.byref(length)), "program info")
    return int.from_bytes(buffer.raw[RECURSION_MISSES_OFFSET:], "little")


def create_array(name: str, value_size: int, entries: int) -> int:
    """A new array map; returns its descriptor (BPF_MAP_CREATE)."""
    create = _function(
        "bpf_map_create", c_int, c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p
    )
    array = 2  # BPF_MAP_TYPE_ARRAY
    made = create(array, name.encode(), 4, value_size, entries, None)
    return _checked(made, f"create map {name}")


def read_array(descriptor: int, index: int, size: int) -> bytes:
    """The value at an index of an array map, `size` bytes (BPF_MAP_LOOKUP_ELEM)."""
    key = c_uint32(index)
    value = ctypes.create_string_buffer(max(size, 8))
    call = _function("bpf_map_lookup_elem", c_int, c_int, c_void_p, c_void_p)
    _checked(call(descriptor, ctypes.byref(key), value), f"read map element {index}")
    return value.raw[:size]


def write_array(descriptor: int, index: int, value: bytes) -> None:
    """Set the value at an index of an array map (BPF_MAP_UPDATE_ELEM)."""
    key = c_uint32(index)
    call = _function("bpf_map_update_elem", c_int, c_int, c_void_p, c_char_p, c_uint64)
    _checked(call(descriptor, ctypes.byref(key), value, BPF_ANY), f"set map element {index}")


def open_task_iterator(program: int, pid: int, *, single: bool = False) -> int:
    """A descriptor to read(2) the iterator's output for one process from, at most once.

    `program` is an iter/task or iter/task_vma program; `pid` a thread group in the caller's pid
    namespace (Linux >= 6.1), or with `single` one thread: iter/task_vma would tell the mappings
    once for each thread. OSError ESRCH if there is none is raised by the kernel on read.
    """
    info = _IterInfo(pid, 0, 0, 0) if single else _IterInfo(0, pid, 0, 0)
    size = ctypes.sizeof(_LinkCreateOpts)
    opts = _LinkCreateOpts(size, 0, ctypes.addressof(info), ctypes.sizeof(info), 0)
    create = _function("bpf_link_create", c_int, c_int, c_int, c_int, c_void_p)
    link = _checked(create(program, 0, BPF_TRACE_ITER, ctypes.byref(opts)), f"iterate over {pid}")
    try:
        iterate = _function("bpf_iter_create", c_int, c_int)
        return _checked(iterate(link), f"iterate over {pid}")
    finally:
        os.close(link)


class Types:
    """The running kernel's types (BTF), printed as C declarations by libbpf's btf_dump."""

    def __init__(self) -> None:
        self._handle = _function("btf__load_vmlinux_btf", c_void_p)()
        if not self._handle:
            raise ProbeError(
                "the kernel offers no type information at /sys/kernel/btf/vmlinux: "
                "it needs CONFIG_DEBUG_INFO_BTF"
            )
        self._text: list[str] = []
        self._emit = _EMIT(lambda _context, pattern, values: self._append(pattern, values))
        new = _function("btf_dump__new", c_void_p, c_void_p, _EMIT, c_void_p, c_void_p)
        self._dump = new(self._handle, self._emit, None, None)

    def _append(self, pattern: bytes, values: int) -> None:
        self._text.append(_library().format(pattern, values))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _function("btf_dump__free", None, c_void_p)(self._dump)
        _function("btf__free", None, c_void_p)(self._handle)

    def __len__(self) -> int:
        return int(_function("btf__type_cnt", c_uint32, c_void_p)(self._handle))

    def find(self, name: str) -> int | None:
        """The id of the first type of this name."""
        found = _function("btf__find_by_name", c_int32, c_void_p, c_char_p)
        number = int(found(self._handle, name.encode()))
        return number if number > 0 else None

    def find_struct(self, name: str) -> int | None:
        """The id of a structure."""
        return self._find(name, BTF_KIND_STRUCT)

    def _find(self, name: str, kind: int) -> int | None:
        found = _function("btf__find_by_name_kind", c_int32, c_void_p, c_char_p, c_uint32)
        number = int(found(self._handle, name.encode(), kind))
        return number if number > 0 else None

    def has_function(self, name: str) -> bool:
        """Whether the kernel has this function, for programs to call or to attach to."""
        return self._find(name, BTF_KIND_FUNC) is not None

    def parameters(self, typedef: str) -> int:
        """How many parameters functions of this type have, of a tracepoint `btf_trace_NAME` one
        more than it has; 0 if there is no such type.
        """
        number = self._find(typedef, BTF_KIND_TYPEDEF)
        while number and self._kind(number) in (BTF_KIND_TYPEDEF, BTF_KIND_PTR):
            number = int(self._words(number)[2])
        return int(self._words(number)[1]) & 0xFFFF if number else 0

    def size(self, number: int) -> int:
        """The size of a type in bytes."""
        call: Callable[..., int] = _function(
            "btf__resolve_size", ctypes.c_int64, c_void_p, c_uint32
        )
        return int(call(self._handle, number))

    def _words(self, number: int) -> Any:
        by_id = _function("btf__type_by_id", c_void_p, c_void_p, c_uint32)
        return (c_uint32 * 6).from_address(by_id(self._handle, number))

    def _name(self, offset: int) -> str:
        call = _function("btf__name_by_offset", c_char_p, c_void_p, c_uint32)
        return str(call(self._handle, offset).decode())

    def members(self, number: int, base: int = 0) -> Iterator[tuple[str, int]]:
        """(name, offset in bytes) of a structure's members that have a name and are no bit-fields.

        Those of unnamed structures and unions inside are members as well, as in C.
        """
        by_id = _function("btf__type_by_id", c_void_p, c_void_p, c_uint32)
        address = by_id(self._handle, number)
        info = self._words(number)[1]
        has_sizes = bool(info >> 31)  # the offsets hold a bit-field's size as well
        for index in range(info & 0xFFFF):
            member = (c_uint32 * 3).from_address(address + BTF_TYPE_BYTES + index * 12)
            if has_sizes and member[2] >> 24:
                continue
            offset = base + (member[2] & 0xFFFFFF if has_sizes else member[2]) // 8
            name = self._name(member[0])
            if name:
                yield name, offset
            elif self._kind(member[1]) in (BTF_KIND_STRUCT, BTF_KIND_UNION):
                yield from self.members(member[1], offset)

    def _kind(self, number: int) -> int:
        return int(self._words(number)[1] >> 24 & 31)

    def anonymous_enums(self, prefix: str) -> Iterator[int]:
        """The ids of enums without a name whose first constant begins with `prefix`."""
        for number in range(1, len(self)):
            words = self._words(number)
            is_enum = self._kind(number) in (BTF_KIND_ENUM, BTF_KIND_ENUM64)
            if not is_enum or words[0] or not words[1] & 0xFFFF:
                continue  # has a name, or no constants
            if self._name(words[3]).startswith(prefix):
                yield number

    def declare(self, number: int) -> None:
        """Print a type and all that it needs, each once."""
        dump = _function("btf_dump__dump_type", c_int, c_void_p, c_uint32)
        _checked(dump(self._dump, number), f"print type {number}")

    def text(self) -> str:
        """What was printed so far."""
        return "".join(self._text)
