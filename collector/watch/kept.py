"""The file of a process's last system calls: made when it has died, read by `info` and `calls`.

    calls.zst     zstd over msgpack: for each thread its last calls, the oldest first

Everything in it came from the process, so it is read strictly, and bounded.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from collector import packed
from collector.arch.syscalls import syscall_number
from collector.arch.x86_64 import PAGE
from collector.errors import StoreError
from collector.model import CallsFacts
from collector.trace.layout import Call

FILE = "calls.zst"
VERSION = 1
_MUNMAP = syscall_number("munmap")
_MOST_UNMAPPED = 64


class KeptThread(msgspec.Struct, frozen=True, kw_only=True):
    """The last calls of one thread. `made`: how many it made in all since it was traced, without
    those that are `lost`, as there was no memory to keep them or no room to tell."""

    tid: int
    comm: str
    made: int
    calls: tuple[Call, ...]
    lost: int = 0


class KeptCalls(msgspec.Struct, frozen=True, kw_only=True):
    """All that is in the file. Times are ns of CLOCK_BOOTTIME."""

    version: int
    rule: str
    time_ns: int  # when it was made
    threads: tuple[KeptThread, ...]
    lost: dict[str, str]

    @property
    def facts(self) -> CallsFacts:
        """What the record says of it."""
        calls = sum(len(thread.calls) for thread in self.threads)
        return CallsFacts(
            threads=len(self.threads),
            calls=calls,
            rule=self.rule,
            file=FILE,
            unmapped=self._unmapped(),
        )

    def _unmapped(self) -> list[tuple[int, int]]:
        """What munmap(2) took away, in the order of time."""
        done = [
            (call.exit_ns or 0, call.args[0], (call.args[0] + call.args[1] + PAGE - 1) & -PAGE)
            for thread in self.threads
            for call in thread.calls
            if (call.number, call.result, call.compat) == (_MUNMAP, 0, False)
        ]
        return [(start, end) for _, start, end in sorted(done)[-_MOST_UNMAPPED:]]

    def thread(self, tid: int) -> KeptThread | None:
        """None: nothing is known of it."""
        return next((thread for thread in self.threads if thread.tid == tid), None)


def write(kept: KeptCalls, folder: Path) -> None:
    """Put the file into a record's folder; whole, or not at all. OSError if it cannot be."""
    packed.write(kept, folder / FILE)


def read(folder: Path) -> KeptCalls:
    """The file of a record's folder. StoreError if it is damaged or gone."""
    path = folder / FILE
    kept = packed.read(path, KeptCalls)
    if kept.version != VERSION:
        raise StoreError(f"{path}: of another version ({kept.version})")
    return kept
