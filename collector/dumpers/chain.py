"""The built-in dumper `chain`: cores also go to the crash handler that was there before us.

    dumpers:
      - {name: chain, module: "collector.dumpers.chain:Chain"}

It hands the core of each process that the policy lets it have to the program (`|/usr/lib/...`) or
the socket (`@/...`) that kernel.core_pattern named before the agent took it over: with its
arguments expanded as core(5) says, the core on standard input, and the process still in /proc. Then
the policy has the process as well. A handler of files needs nobody to hand cores on; one with
requests (`@@`) asks the kernel who its peer is, and would refuse us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from collector.dumpers.plugin import NOMATCH, SPECIAL, HeldProcess, StreamWriter, write_core
from collector.dumpers.plugins import RUN_DIR
from collector.errors import HoldError
from collector.handoff.settings import SettingsGuard

# of call_usermodehelper_setup in fs/coredump.c
_ENVIRONMENT = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/bin:/usr/sbin:/usr/bin"}
_NO_LIMIT = (1 << 64) - 1  # RLIM_INFINITY, as %c has it
_SPECIFIER = re.compile("%(.?)")


class Chain:
    """A plugin; see the module."""

    name = "chain"
    passes = True  # the policy's core is made all the same

    def __init__(self, pattern: str | None = None) -> None:
        """pattern: a core_pattern; None: the one that was there before the agent."""
        self._pattern = pattern
        self.note: str | None = None

    def probe(self, process: HeldProcess) -> int:
        return SPECIAL if self._handler()[:1] in ("|", "@") else NOMATCH

    def handle(self, process: HeldProcess, limit: int | None) -> int | None:
        handler = self._handler()
        if handler.startswith("@@"):
            self.note = f"{handler}: it takes cores from the kernel alone"
            return errno.EOPNOTSUPP
        if handler.startswith("@"):
            return self._to_socket(process, handler[1:], limit)
        return self._to_program(process, arguments(handler[1:], process), limit)

    def _handler(self) -> str:
        if self._pattern is not None:
            return self._pattern
        with contextlib.suppress(HoldError, OSError):
            guard = SettingsGuard(Path(os.environ.get(RUN_DIR, "/run/coreward")))
            return guard.former_pattern or ""
        return ""

    def _to_program(
        self, process: HeldProcess, command: Sequence[str], limit: int | None
    ) -> int | None:
        """As the kernel starts it: in /, with nothing but the core. It is waited for."""
        kept = [process.fileno("pidfd")] if process.held else []
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd="/", env=_ENVIRONMENT, pass_fds=kept
        ) as handler:
            assert handler.stdin is not None
            size = self._stream(process, handler.stdin.fileno(), limit)
        if handler.returncode:
            self.note = f"{command[0]} ended with status {handler.returncode}"
            return errno.EIO
        self.note = f"{size} bytes to {command[0]}"
        return None

    def _to_socket(self, process: HeldProcess, path: str, limit: int | None) -> int | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            size = self._stream(process, connection.fileno(), limit)
        self.note = f"{size} bytes to {path}"
        return None

    def _stream(self, process: HeldProcess, fd: int, limit: int | None) -> int:
        """Bytes of the core; fewer if the handler did not want all of it."""
        try:
            return write_core(process, StreamWriter(fd), limit=limit).size
        except BrokenPipeError:  # as with the kernel: it may have read enough
            return 0


def arguments(pattern: str, process: HeldProcess) -> list[str]:
    """The command line of a handler: words first, then what each specifier stands for (core(5))."""
    words = pattern.split()
    known = _specifiers(process)
    return [_SPECIFIER.sub(lambda found: known.get(found[1], ""), word) for word in words]


def _specifiers(process: HeldProcess) -> dict[str, str]:
    limit = _NO_LIMIT if process.core_limit is None else process.core_limit
    numbers = {
        "P": process.pid,
        "p": process.ns_pid or process.pid,
        "I": process.tid or process.pid,
        "i": process.ns_tid or process.ns_pid or process.pid,
        "u": process.uid,
        "g": process.gid,
        "s": process.signal,
        "d": 1,  # dumpable: others are not handed over
        "t": int(time.time()),
        "c": limit,
        "C": -1,  # the CPU is not known
    }
    found = {letter: "" if number is None else str(number) for letter, number in numbers.items()}
    path = process.exe or f"{process.name} (path unknown)"
    found |= {"%": "%", "e": process.name, "h": os.uname().nodename, "E": path.replace("/", "!")}
    found["f"] = (process.exe or process.name).rpartition("/")[2]
    if process.held:
        found["F"] = str(process.fileno("pidfd"))
    return found
