"""What a piece of work may take of memory: RLIMIT_DATA, lowered for as long as it lasts.

A decoder that is given bytes of a stranger's makes objects of them with up to twenty times their
size. Sizes of files do not bound that, so the kernel does: beyond the limit there is a
MemoryError. The limit is that of the whole process, so this is for programs that do one thing, the
verbs; the agent and its threads must not. Sources: getrlimit(2), proc(5) on statm.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from collector.arch.x86_64 import PAGE

_DATA = 5  # of statm's words: private memory that can be written, in pages


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Within: MemoryError where the process takes more than `size` bytes beside what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _taken() + size
    if soft != resource.RLIM_INFINITY:
        bound = min(bound, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _taken() -> int:
    return int(Path("/proc/self/statm").read_text().split()[_DATA]) * PAGE
