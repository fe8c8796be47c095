"""A BPF hash map seen from user space: keys and values as bytes, whatever they mean."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from collector.linux import libbpf


@cache
def _call(name: str, arguments: int) -> Any:
    """A function of libbpf that takes a descriptor and buffers, and returns 0 or -errno."""
    function = getattr(ctypes.CDLL(libbpf.LIBRARY, use_errno=True), name)
    function.restype = ctypes.c_int
    function.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * arguments)
    return function


class HashMap:
    """One open map; owns its descriptor. Safe for several threads, and while programs change it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        info = libbpf.map_info(descriptor)
        self.value_size = info.value_size
        self._key_size = info.key_size
        self._most = info.max_entries

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        """For whoever looks it up by itself; it stays this one's."""
        return self._descriptor

    def get(self, key: bytes) -> bytes | None:
        """The value of a key (BPF_MAP_LOOKUP_ELEM); None: there is none. OSError else."""
        value = ctypes.create_string_buffer(self.value_size)
        found = _is_there(_call("bpf_map_lookup_elem", 2)(self._descriptor, key, value))
        return value.raw if found else None

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key (BPF_MAP_UPDATE_ELEM). OSError if there is no room."""
        update = ctypes.CDLL(libbpf.LIBRARY, use_errno=True).bpf_map_update_elem
        update.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)
        result = update(self._descriptor, key, value, libbpf.BPF_ANY)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def __iter__(self) -> Iterator[bytes]:
        """The keys that are there (BPF_MAP_GET_NEXT_KEY); each at least once, if nobody removes."""
        following = _call("bpf_map_get_next_key", 2)
        last, key = None, ctypes.create_string_buffer(self._key_size)
        for _ in range(2 * self._most):  # it begins anew where its last key was removed
            if not _is_there(following(self._descriptor, last, key)):
                return
            last = key.raw
            yield last

    def remove(self, key: bytes) -> bytes | None:
        """Take a key out (BPF_MAP_LOOKUP_AND_DELETE_ELEM, Linux >= 5.14); its last value."""
        value = ctypes.create_string_buffer(self.value_size)
        taken = _call("bpf_map_lookup_and_delete_elem", 2)(self._descriptor, key, value)
        return value.raw if _is_there(taken) else None


def _is_there(result: int) -> bool:
    if result < 0 and result != -errno.ENOENT:
        raise OSError(-result, os.strerror(-result))
    return result >= 0
