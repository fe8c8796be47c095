"""Words of memory that the kernel's exit path overwrites even under a pin; saved before release.

A pin keeps the address space, but not its contents: the exit path itself writes to a few words.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence

import msgspec

from collector.linux import process_vm
from collector.linux.pagemap import resident

_AT_PHDR, _AT_SYSINFO_EHDR = 3, 33  # <elf.h>
_WORD = 4  # bytes of a tid word or futex
_MAX_ROBUST = 2048  # ROBUST_LIST_LIMIT of <linux/futex.h>


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of memory as they were before exit changed them."""

    address: int
    data: bytes


def exit_patches(pid: int, pagemap_fd: int, words: Sequence[tuple[int, int]]) -> list[Patch]:
    """Copies of what exit will change, taken before: one (tid address, robust list) per thread.

    A pinned address space outlives its threads, and mm_release() (kernel/fork.c) then clears each
    thread's `clear_child_tid` word and marks the robust futexes that it holds
    (Documentation/locking/robust-futexes.rst). Addresses of 0 mean that there is none.
    """
    tid_words = [address for address, _ in words if address]
    patches = [
        Patch(address, data)
        for address, data in zip(
            tid_words, _read_words(pid, pagemap_fd, tid_words, _WORD), strict=True
        )
        if data
    ]
    heads = [head for _, head in words if head]
    for head, data in zip(heads, _read_words(pid, pagemap_fd, heads, 24), strict=True):
        if data:
            following, offset, pending = struct.unpack("<QqQ", data)
            if following != head or pending:
                patches += _robust_patches(pid, pagemap_fd, head, following, offset, pending)
    return patches


def _robust_patches(
    pid: int, pagemap_fd: int, head: int, entry: int, offset: int, pending: int
) -> list[Patch]:
    locks = [pending] if pending else []
    while entry != head and entry and len(locks) < _MAX_ROBUST:
        locks.append(entry)
        data = _read_words(pid, pagemap_fd, [entry & ~1], 8)[0]
        entry = int.from_bytes(data, "little") if len(data) == 8 else 0
    futexes = [((lock & ~1) + offset) & ((1 << 64) - 1) for lock in locks]
    found = zip(futexes, _read_words(pid, pagemap_fd, futexes, 4), strict=True)
    return [Patch(address, data) for address, data in found if len(data) == 4]


def _read_words(pid: int, pagemap_fd: int, wanted: Sequence[int], size: int) -> list[bytes]:
    """`size` bytes at each address by process_vm_readv(2), many per call; b"" where unreadable."""
    pieces = array("Q", bytes(16 * len(wanted)))
    pieces[::2] = array("Q", [a if resident(pagemap_fd, a, size) else 0 for a in wanted])
    pieces[1::2] = array("Q", [size]) * len(wanted)
    data, sizes = process_vm.Reader(size * process_vm.IOV_MAX).read(pid, pieces)
    ends = itertools.accumulate(sizes)
    return [data[e - size : e] if n == size else b"" for e, n in zip(ends, sizes, strict=True)]


def pin_addresses(auxv: bytes, stack_pointer: int | None) -> list[int]:
    """Addresses that can be read in almost any process: its program headers, its vdso, its stack.

    From the auxiliary vector (getauxval(3)): AT_PHDR and AT_SYSINFO_EHDR.
    """
    aux = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & -16]))
    found = [aux.get(_AT_PHDR), stack_pointer, aux.get(_AT_SYSINFO_EHDR)]
    return [address for address in found if address]
