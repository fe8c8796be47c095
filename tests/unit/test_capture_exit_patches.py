"""Words that exit changes are copied before: tid words and robust futexes, of this very process."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from collector.capture.dying import Patch, exit_patches

APART = 16  # from a tid word to the list's head, as glibc has them
UNREADABLE = 8


class Block:
    """A thread's control block: a tid word, the head of a robust list, and a mutex."""

    def __init__(self, tid: int, *, holds: bool = False) -> None:
        self.memory = ctypes.create_string_buffer(256)
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
    def word(self) -> Patch:
        return Patch(self.tid_word, struct.pack("<I", self.tid))

    @property
    def futex(self) -> Patch:
        return Patch(self.mutex - 32, struct.pack("<I", self.tid | 1 << 31))


def patches(*words: tuple[int, int]) -> list[Patch]:
    with open("/proc/self/pagemap", "rb") as pagemap:
        found = exit_patches(os.getpid(), pagemap.fileno(), words)
    return sorted(found, key=lambda patch: patch.address)


@pytest.mark.parametrize("count", [1, 3, 1500])
def test_threads_of_a_c_library(count: int) -> None:
    blocks = [Block(1000 + number, holds=number % 2 == 1) for number in range(count)]
    expected = [b.word for b in blocks] + [b.futex for b in blocks[1::2]]
    found = patches(*((b.tid_word, b.head) for b in blocks))
    assert found == sorted(expected, key=lambda patch: patch.address)


def test_unreadable_ones_cost_only_themselves() -> None:
    first, last = Block(1), Block(2, holds=True)
    found = patches(
        (first.tid_word, first.head),
        (UNREADABLE, UNREADABLE + APART),
        (last.tid_word, last.head),
    )
    assert found == sorted([first.word, last.word, last.futex], key=lambda patch: patch.address)


def test_words_far_apart_or_absent() -> None:
    block, other = Block(1, holds=True), Block(2)
    found = patches((0, block.head), (other.tid_word, 0), (block.tid_word, other.head))
    assert found == sorted([block.futex, other.word, block.word], key=lambda patch: patch.address)
    assert patches() == []
