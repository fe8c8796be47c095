"""The event of a dumper for a process that lives: with the real files of /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from collector.capture.image import decode_maps
from collector.dumpers.protocol import Message, message
from collector.elfcore.notes import build_notes, image_of
from collector.elfcore.types import ParsedNotes
from tests.unit.elfcore_samples import thread

SECRET = b"what the process has in its memory"
_PROGRAM = """
import ctypes, sys, time
secret = ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def living() -> Iterator[tuple[Message, int]]:
    """An event about a child, and the address of SECRET in its memory."""
    with contextlib.ExitStack() as opened:
        child = opened.enter_context(
            subprocess.Popen(
                [sys.executable, "-S", "-c", _PROGRAM, SECRET.hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        opened.callback(child.kill)
        assert child.stdout is not None
        address = int(child.stdout.readline())
        fds = {
            name: os.open(f"/proc/{child.pid}/{name}", flags)
            for name, flags in {
                "mem": os.O_RDONLY,
                "maps": os.O_RDONLY,
                "pagemap": os.O_RDONLY,
                "root": os.O_PATH,
                "exe": os.O_PATH,
            }.items()
        }
        mappings = decode_maps(Path(f"/proc/{child.pid}/maps").read_bytes())
        image = image_of(ParsedNotes(threads=(thread(child.pid), thread(child.pid + 1))), mappings)
        fds["notes"] = os.memfd_create("notes")
        os.write(fds["notes"], build_notes(image))
        for fd in fds.values():
            opened.callback(os.close, fd)
        facts = message(
            "EVENT",
            pid=child.pid,
            tid=child.pid,
            comm="python3",
            exe=os.readlink(f"/proc/{child.pid}/exe"),
            uid=1000,
            signal=11,
            limit=1 << 30,
            coredump_filter="33",
        )
        yield Message("EVENT", (*facts.fields, ("arg", "python3"), ("arg", "a\nb")), fds), address
