"""What a dumper in Python needs: the interface of plugins, and what it can use.

    from collector.dumpers.plugin import SPECIAL, HeldProcess, write_core

    class Database:
        name = "database"

        def probe(self, process: HeldProcess) -> int:
            return SPECIAL if "--replica" not in process.arguments else NOMATCH

        def handle(self, process: HeldProcess, limit: int | None) -> int | None:
            write_core(process, MyWriter(), limit=limit)
            return None

docs/dumpers.md says how the policy names one.
"""

from __future__ import annotations

from typing import Protocol

from collector.dumpers.core import write_core
from collector.dumpers.held import HeldProcess
from collector.dumpers.protocol import GENERIC, HIGHPRIORITY, NOMATCH, SPECIAL
from collector.elfcore.sink import SparseWriter, StreamWriter, Writer, WriterParams, ZstdWriter

__all__ = [
    "GENERIC",
    "HIGHPRIORITY",
    "NOMATCH",
    "SPECIAL",
    "DumperPlugin",
    "HeldProcess",
    "SparseWriter",
    "StreamWriter",
    "Writer",
    "WriterParams",
    "ZstdWriter",
    "write_core",
]


class DumperPlugin(Protocol):
    """One dumper; made once, by calling what the policy names without arguments.

    It runs in a process of its own, as a user of its own, and has one process at a time.
    """

    def probe(self, process: HeldProcess) -> int:
        """The bid for a process, within `hold.bids`: a priority, or NOMATCH. An exception
        declines."""

    def handle(self, process: HeldProcess, limit: int | None) -> int | None:
        """Dump it; limit: bytes of memory, the smaller of policy's and the process's, None: none.

        None: done. An errno: it failed, and the next dumper has its turn. So it has after an
        exception (EIO, or the errno of an OSError) and after the timeout.
        """
