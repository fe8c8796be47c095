"""Which pages of a process exist: /proc/PID/pagemap.

Reading memory that was never touched would allocate page tables in the target and read zeros,
so every copy asks here first. Two ways: the PAGEMAP_SCAN ioctl (Linux >= 6.7, <linux/fs.h>,
Documentation/admin-guide/mm/pagemap.rst), which also knows the zero page, and the 8-byte entries
of the file itself on older kernels.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.linux.procfs import Stat

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_WPALLOWED, _WRITTEN = 1 << 0, 1 << 1
_PRESENT, _SWAPPED, _PFNZERO = 1 << 3, 1 << 4, 1 << 5
_HUGE = 1 << 6
_WP_MATCHING = 1 << 0  # flag: protect what is found, in the same step
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_WRITE_PROTECTED = 1 << 63, 1 << 62, 1 << 57
_STEP = 16 << 20  # bytes of addresses that are protected at a time; whole huge pages
_REGIONS = 4096  # page regions fetched by one ioctl
_CHUNK = 1 << 15  # entries read at a time on older kernels: 128 MiB of addresses


class _PageRegion(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("kind", ctypes.c_uint64))


class _ScanArg(ctypes.Structure):
    """struct pm_scan_arg of <linux/fs.h>."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    )


def resident(pagemap_fd: int, address: int, size: int) -> bool:
    """Whether these bytes of a process that is held are there, or in swap.

    Others are not to be touched while it waits: they may keep whoever touches them waiting.
    """
    return resident_part(pagemap_fd, address, size) == size


def resident_part(pagemap_fd: int, address: int, size: int) -> int:
    """How many of these bytes are there, or in swap, before the first that are not."""
    first, last = address // PAGE, (address + size - 1) // PAGE
    try:
        entries = os.pread(pagemap_fd, 8 * (last - first + 1), 8 * first)
    except (OSError, OverflowError):
        return 0
    end = first
    for entry in array.array("Q", entries[: len(entries) & -8]):
        if not entry & (_ENTRY_PRESENT | _ENTRY_SWAPPED) or _is_marker(entry):
            break
        end += 1
    return max(0, min(address + size, end * PAGE) - address)


def _is_marker(entry: int) -> bool:
    """Whether it only looks like swap: userfaultfd's write protection of a page that is absent."""
    return not entry & _ENTRY_PRESENT and bool(entry & _ENTRY_WRITE_PROTECTED)


def has_arguments(pagemap_fd: int, stat: Stat, most: int) -> bool:
    """Whether `most` bytes of a process's arguments can be read without waiting.

    stat: of a thread that has its memory.
    """
    size = min(stat.arg_end - stat.arg_start, most)
    return size > 0 and resident(pagemap_fd, stat.arg_start, size)


class Pagemap:
    """Finds the populated, non-zero pages behind one open /proc/PID/pagemap."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._regions = (_PageRegion * _REGIONS)()
        self._has_scan = True

    def populated(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of [start, end), in order, that are present or swapped and not the zero page.

        Raises OSError if the pagemap cannot be read (the address space is gone).
        """
        if self._has_scan:
            try:
                yield from self._scan(start, end)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                self._has_scan = False
        yield from self._entries(start, end)

    def _scan(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        arg = _ScanArg(
            size=ctypes.sizeof(_ScanArg),
            vec=ctypes.addressof(self._regions),
            vec_len=_REGIONS,
            category_anyof_mask=_PRESENT | _SWAPPED,
            return_mask=_PFNZERO,
        )
        at = start
        while at < end:
            arg.start, arg.end, arg.walk_end = at, end, 0
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, arg)
            # copied out: the consumer may be slow, and the buffer is used again
            found = [(r.start, r.end) for r in self._regions[:count] if not r.kind & _PFNZERO]
            at = arg.walk_end or end
            yield from found

    def huge(self, start: int, end: int) -> int:
        """Bytes of [start, end) that huge pages map, hugetlbfs' own included; Linux >= 6.7.

        OSError (ENOTTY) on older kernels.
        """
        arg = _ScanArg(
            size=ctypes.sizeof(_ScanArg),
            vec=ctypes.addressof(self._regions),
            vec_len=_REGIONS,
            category_mask=_HUGE,
            return_mask=_HUGE,
        )
        total, at = 0, start
        while at < end:
            arg.start, arg.end, arg.walk_end = at, end, 0
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, arg)
            total += sum(r.end - r.start for r in self._regions[:count])
            at = arg.walk_end or end
        return total

    def _entries(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        first: int | None = None
        at = start
        while at < end:
            count = min(_CHUNK, (end - at) // PAGE)
            raw = os.pread(self._fd, count * 8, at // PAGE * 8)
            if len(raw) < 8:
                break
            for entry in array.array("Q", raw[: len(raw) & -8]):
                if entry & (_ENTRY_PRESENT | _ENTRY_SWAPPED):
                    first = at if first is None else first
                elif first is not None:
                    yield first, at
                    first = None
                at += PAGE
        if first is not None:
            yield first, at


class Changes(NamedTuple):
    """What `WriteScan.look` finds, as rising ranges of addresses."""

    written: list[tuple[int, int]]  # populated, and not protected any more, or never protected
    absent: list[tuple[int, int]]  # not populated, or the zero page: reads as zero (or as the file)


class WriteScan:
    """Finds the pages that were written since they were last protected by `protect`.

    For areas that are registered with a userfaultfd of the process for asynchronous write
    protection (Linux >= 6.7); all others count as written. Room for `capacity` page ranges is made
    and touched at once.
    """

    def __init__(self, fd: int, capacity: int = 1 << 16) -> None:
        self._fd = fd
        self._regions = (_PageRegion * capacity)()
        ctypes.memset(self._regions, 0xFF, ctypes.sizeof(self._regions))
        self._words = memoryview(self._regions).cast("B").cast("Q")
        self._arg = _ScanArg(
            size=ctypes.sizeof(_ScanArg),
            vec=ctypes.addressof(self._regions),
            vec_len=capacity,
        )

    def protect(self, start: int, end: int, *, zero: bool) -> list[tuple[int, int]]:
        """Populated pages of [start, end) that were written; from now on they count as clean.

        zero: tell of the zero page as well. Areas that are not registered are passed over. In
        steps of 16 MiB (0.2 ms), for mmap(2) of the process waits meanwhile; each ends at a
        multiple of that, for the kernel splits a huge page that is not protected as a whole.
        OSError if the address space is gone.
        """
        arg = self._arg
        arg.flags, arg.category_inverted, arg.max_pages = 0, 0, 0
        arg.category_mask, arg.category_anyof_mask = _WRITTEN, _PRESENT | _SWAPPED
        arg.return_mask = 0 if zero else _PFNZERO
        there = self._run(start, end)
        arg.flags = _WP_MATCHING
        found: list[tuple[int, int, int]] = []
        at = start
        for low, high, _ in there:
            at = max(at, low & -_STEP)
            while at < high:
                following = min((at & -_STEP) + _STEP, end)
                found += self._run(at, following)
                at = following
        return [(a, b) for a, b, kind in found if not kind & arg.return_mask]

    def look(self, ranges: Iterable[tuple[int, int]]) -> Changes:
        """What changed in these ranges. For a process that stands still; 0.5 ms/GiB."""
        found: list[tuple[int, int, int]] = []
        arg = self._arg
        arg.flags, arg.category_mask, arg.max_pages = 0, _WPALLOWED, 0
        arg.return_mask = _WRITTEN | _PRESENT | _SWAPPED | _PFNZERO
        for start, end in ranges:
            # The kernel is fast at passing over pages, not at telling of them: it tells only of
            # those that were written or are not present,
            arg.category_inverted, arg.category_anyof_mask = _PRESENT, _WRITTEN | _PRESENT
            found += self._run(start, end)
            # and of all in areas that are not registered, where old marks may have remained.
            arg.category_inverted, arg.category_anyof_mask = _WPALLOWED, 0
            found += [(a, b, kind | _WRITTEN) for a, b, kind in self._run(start, end)]
        found.sort()
        there = _PRESENT | _SWAPPED
        return Changes(
            [(a, b) for a, b, k in found if k & _WRITTEN and k & there and not k & _PFNZERO],
            [(a, b) for a, b, k in found if not k & there or k & _PFNZERO],
        )

    def _run(self, start: int, end: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        at = start
        while at < end:
            self._arg.start, self._arg.end, self._arg.walk_end = at, end, 0
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, self._arg)
            words = self._words[: 3 * count].tolist()
            found += zip(words[0::3], words[1::3], words[2::3], strict=True)
            at = self._arg.walk_end or end
        return found
