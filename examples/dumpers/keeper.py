"""A dumper that keeps compressed cores in a folder of its own, in Python.

    python keeper.py SOCKET FOLDER [FIELD=VALUE...]

It takes every process that matches: `match.exe=/usr/bin/db`, for example. With `pin=yes` a process
goes at once, and its core is written from its pinned memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from collector.dumpers.client import Client
from collector.dumpers.plugin import SPECIAL, HeldProcess, ZstdWriter, write_core
from collector.dumpers.protocol import Message


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    fields = dict(argument.split("=", 1) for argument in sys.argv[3:])
    match = [
        (key.removeprefix("match."), value)
        for key, value in fields.items()
        if key.startswith("match.")
    ]
    pin = fields.get("pin") == "yes"

    def dump(event: Message) -> str:
        process = HeldProcess(event)
        size = keep(process, folder / f"{process.pid}.core.zst")
        print(f"{process.name}[{process.pid}]: {size} bytes", flush=True)
        return f"{size} bytes"

    with Client.connect(path, "keeper", priority=SPECIAL, match=match, pin=pin) as client:
        print("registered", flush=True)
        client.dump_each(dump)


def keep(process: HeldProcess, path: Path) -> int:
    """Write the core of a process; its size in bytes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_core(process, ZstdWriter(fd), limit=process.limit)
        return os.fstat(fd).st_size
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
