"""A dumper that keeps compressed cores in a folder of its own, in Python.

    python keeper.py SOCKET FOLDER [FIELD=VALUE...]

It takes every process that matches: `match.exe=/usr/bin/db`, for example. With `pin=yes` a process
goes at once, and its core is written from its pinned memory.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from collector.dumpers.client import Client
from collector.dumpers.plugin import SPECIAL, HeldProcess, ZstdWriter, write_core
from collector.errors import CorewardError


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    fields = dict(argument.split("=", 1) for argument in sys.argv[3:])
    match = [
        (key.removeprefix("match."), value)
        for key, value in fields.items()
        if key.startswith("match.")
    ]
    pin = fields.get("pin") == "yes"
    with Client.connect(path, "keeper", priority=SPECIAL, match=match, pin=pin) as client:
        print("registered", flush=True)
        for event in client.events():
            if event.verb != "DUMP":
                continue
            process = HeldProcess(event)
            try:
                size = keep(process, folder / f"{process.pid}.core.zst")
            except OSError as error:
                client.let_go(event, error.errno or errno.EIO)
            except CorewardError as error:
                client.let_go(event, errno.EIO, str(error))
            else:
                client.let_go(event, 0, f"{size} bytes")
                print(f"{process.name}[{process.pid}]: {size} bytes", flush=True)


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
