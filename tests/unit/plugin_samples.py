"""Plugins for tests, each loaded by a worker."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from collector.dumpers.plugin import NOMATCH, SPECIAL, HeldProcess, SparseWriter, write_core


class Keeps:
    """Bids for what has the word `mine` among its arguments; its core goes where that says."""

    name = "keeps"

    def probe(self, process: HeldProcess) -> int:
        wanted = "mine" in process.arguments and process.threads()
        return SPECIAL + len(process.threads()) if wanted else NOMATCH

    def handle(self, process: HeldProcess, limit: int | None) -> int | None:
        with Path(process.arguments[-1]).open("wb") as file:
            write_core(process, SparseWriter(file.fileno()), limit=limit)
        self.note = f"as uid {os.getuid()}, limit {limit}"
        return None


class Fails:
    """In the way that the process's last argument says."""

    def probe(self, process: HeldProcess) -> int:
        if process.arguments[-1] == "probe":
            raise RuntimeError("no bid")
        return SPECIAL

    def handle(self, process: HeldProcess, limit: int | None) -> int | None:
        how = process.arguments[-1]
        if how == "errno":
            return errno.ENOSPC
        if how == "os":
            raise OSError(errno.EDQUOT, "no room")
        if how == "raise":
            raise RuntimeError("lost its way")
        if how == "die":
            os._exit(3)
        if how == "memory":
            bytearray(1 << 30)
        if how == "hang":
            time.sleep(1000)
        return None


class NoDumper:
    """It has no handle()."""

    def probe(self, process: HeldProcess) -> int:
        return SPECIAL
