"""Words that exit changes are copied before: tid words and robust futexes, of this very process.

By the native part's own files, built so that a test can call what is inside.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.linux import pagemap, userfaultfd
from collector.native.build import build_library
from collector.native.contract import FILES, WORD, Taken
from collector.probe.iterators import THREAD

APART = 16  # from a tid word to the list's head, as glibc has them
UNREADABLE = 8
BLOCK = 256  # bytes of a Block
ENTRIES = 16 << 10  # of the robust lists of one process: MAX_ENTRIES of exit_words.c
AREA = 64 << 20
NEVER = (1 << 63) - 1  # ns
Word = tuple[int, bytes]


class Block:
    """A thread's control block: a tid word, the head of a robust list, and a mutex."""

    def __init__(self, tid: int, *, holds: bool = False) -> None:
        self.memory = ctypes.create_string_buffer(BLOCK)
        self.tid_word = ctypes.addressof(self.memory)
        self.head = self.tid_word + APART
        self.mutex = self.tid_word + 128
        self.tid = tid
        following = self.mutex if holds else self.head
        struct.pack_into("<I", self.memory, 0, tid)
        struct.pack_into("<QqQ", self.memory, APART, following, -32, 0)
        struct.pack_into("<Q", self.memory, 128, self.head)
        struct.pack_into("<I", self.memory, 128 - 32, tid | 1 << 31)

    @property
    def word(self) -> Word:
        return self.tid_word, struct.pack("<I", self.tid)

    @property
    def futex(self) -> Word:
        return self.mutex - 32, struct.pack("<I", self.tid | 1 << 31)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("native"), inside=True)))


@pytest.fixture
def area() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, AREA, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        yield memory


def record(tid_word: int, head: int) -> bytes:
    """A struct cw_thread without an XSAVE area."""
    raw = bytearray(THREAD.size)
    struct.pack_into("<I", raw, 0, THREAD.size)
    struct.pack_into("<QQ", raw, 112, tid_word, head)
    return bytes(raw)


def kept(
    library: ctypes.CDLL, area: mmap.mmap, *words: tuple[int, int], until_ns: int = NEVER
) -> list[Word]:
    """What is kept of a process whose threads have these tid words and robust lists.

    There is all the time for it that a busy machine takes.
    """
    threads = b"".join(record(*word) for word in words)
    taken = Taken(pid=os.getpid(), tid=os.getpid(), robust_until_ns=until_ns)
    view = ctypes.c_char.from_buffer(area)
    base = ctypes.addressof(view)
    del view
    area[: len(threads)] = threads
    taken.threads.at, taken.threads.size = base, len(threads)
    taken.words.at = base + AREA // 2
    taken.area.at, taken.area.size = base, AREA
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        taken.fds[FILES.index("pagemap")] = pagemap.fileno()
        library.keep_words(ctypes.byref(taken))
    return sorted(WORD.iter_unpack(taken.words.copy()))


@pytest.mark.parametrize("count", [1, 3, 1500])
def test_threads_of_a_c_library(library: ctypes.CDLL, area: mmap.mmap, count: int) -> None:
    blocks = [Block(1000 + number, holds=number % 2 == 1) for number in range(count)]
    expected = [b.word for b in blocks] + [b.futex for b in blocks[1::2]]
    found = kept(library, area, *((b.tid_word, b.head) for b in blocks))
    assert found == sorted(expected)


def test_lists_wait_no_longer_than_there_is_time(library: ctypes.CDLL, area: mmap.mmap) -> None:
    blocks = [Block(1000 + number, holds=True) for number in range(3)]
    # GIVEN that the time was over long ago
    found = kept(library, area, *((b.tid_word, b.head) for b in blocks), until_ns=1)
    # THEN the words of the threads are there, and no list was looked at
    assert found == sorted(b.word for b in blocks)


def test_unreadable_ones_cost_only_themselves(library: ctypes.CDLL, area: mmap.mmap) -> None:
    first, last = Block(1), Block(2, holds=True)
    found = kept(
        library,
        area,
        (first.tid_word, first.head),
        (UNREADABLE, UNREADABLE + APART),
        ((1 << 64) - 4, (1 << 64) - 8),
        (last.tid_word, last.head),
    )
    assert found == sorted([first.word, last.word, last.futex])


def test_words_far_apart_or_absent(library: ctypes.CDLL, area: mmap.mmap) -> None:
    block, other = Block(1, holds=True), Block(2)
    found = kept(library, area, (0, block.head), (other.tid_word, 0), (block.tid_word, other.head))
    assert found == sorted([block.futex, other.word, block.word])
    assert kept(library, area) == []


def test_endless_lists_of_many_threads_have_one_bound(
    library: ctypes.CDLL, area: mmap.mmap
) -> None:
    # GIVEN a hundred threads whose robust lists have no end
    blocks = [Block(1000 + number, holds=True) for number in range(100)]
    for block in blocks:
        struct.pack_into("<Q", block.memory, 128, block.mutex)
    # WHEN their words are kept, THEN it ends soon: by the bound of the process, not of each thread
    before = time.process_time()
    found = kept(library, area, *((b.tid_word, b.head) for b in blocks))
    assert time.process_time() - before < 1
    futexes = [word for word in found if word in {b.futex for b in blocks}]
    assert 0 < len(futexes) <= ENTRIES
    assert len(found) == len(futexes) + len(blocks)


def test_a_marker_of_write_protection_is_no_page(library: ctypes.CDLL) -> None:
    # GIVEN a page that is absent, and that userfaultfd write-protects: pagemap calls it swapped
    memfd = os.memfd_create("marked")
    os.ftruncate(memfd, mmap.PAGESIZE)
    page = mmap.mmap(memfd, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    both = userfaultfd.MISSING | userfaultfd.WRITE_PROTECT
    try:
        uffd = userfaultfd.new()
        userfaultfd.enable(uffd, userfaultfd.WP_HUGETLBFS_SHMEM)
        userfaultfd.register(uffd, address, mmap.PAGESIZE, both)
        protect = struct.pack("=QQQ", address, mmap.PAGESIZE, 1)
        fcntl.ioctl(uffd, 0xC018AA06, protect)  # UFFDIO_WRITEPROTECT
    except OSError as error:
        pytest.skip(f"no write protection of shared memory: {error}")
    taken = Taken()
    taken.fds[FILES.index("pagemap")] = pagemap_fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    # THEN it is not touched: whoever did would wait for whoever handles its faults
    library.resident.restype = ctypes.c_bool
    where = (ctypes.c_uint64(address), ctypes.c_size_t(8))
    assert not library.resident(ctypes.byref(taken), *where)
    assert not pagemap.resident(pagemap_fd, address, 8)
    for fd in (uffd, memfd, pagemap_fd):
        os.close(fd)
