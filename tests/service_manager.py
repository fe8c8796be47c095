"""A service manager of the tests' own. It speaks sd_notify(3) and sd_listen_fds(3).

    with ServiceManager(folder) as manager:
        process = manager.launch(["program"], stdout=...)
        manager.wait_for("READY", "1")

What a service tells it is kept in `told`. Descriptors that it is given are kept in `store`, by
name, and handed to what is launched next.
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PATIENCE = 20.0  # seconds
_MOST = 16  # descriptors in a message
# gives it the descriptors that stand before `--`, from number 3 on, and its own pid
_GIVE = """
import fcntl, os, sys
end = sys.argv.index("--")
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 64) for number in sys.argv[1:end]]
for number in sys.argv[1:end]:
    os.close(int(number))
for index, fd in enumerate(given):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
"""


class ServiceManager:
    """A context manager: leaving it closes what is kept."""

    def __init__(self, folder: Path, watchdog_s: float | None = None, keeps: int = 8) -> None:
        self.address = str(folder / "notify.sock")
        self.inside = self.address  # as the service finds it
        self.watchdog_s, self.keeps = watchdog_s, keeps
        self.told: list[dict[str, str]] = []  # a message each
        self.store: dict[str, int] = {}
        self._said = threading.Condition()
        self._seen = 0  # messages that were waited for, or passed over
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def launch(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        """As subprocess.Popen, with all that is kept."""
        kept = dict(self.store)
        environment = dict(how.pop("env", None) or os.environ, NOTIFY_SOCKET=self.inside)
        if self.watchdog_s is not None:
            environment["WATCHDOG_USEC"] = str(round(self.watchdog_s * 1e6))
        if self.keeps:
            environment["FDSTORE"] = str(self.keeps)
        if kept:
            environment["LISTEN_FDS"] = str(len(kept))
            environment["LISTEN_FDNAMES"] = ":".join(kept)
        give = [sys.executable, "-c", _GIVE, *map(str, kept.values()), "--"]
        return subprocess.Popen(
            [*give, *command], env=environment, pass_fds=tuple(kept.values()), **how
        )

    def wait_for(self, name: str, value: str | None = None) -> dict[str, str]:
        """The next message that has this assignment; earlier ones are passed over."""
        end = time.monotonic() + PATIENCE
        with self._said:
            while True:
                while self._seen < len(self.told):
                    message = self.told[self._seen]
                    self._seen += 1
                    if name in message and value in (None, message[name]):
                        return message
                if time.monotonic() > end:
                    raise AssertionError(f"no {name}={value or ''} among {self.told[-20:]}")
                self._said.wait(0.5)

    def _listen(self) -> None:
        room = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
        while True:
            try:
                data, control, _, _ = self._socket.recvmsg(65536, room)
            except OSError:
                return
            if not data:  # `__exit__`
                return
            given = array.array("i")
            for _, _, content in control:
                given.frombytes(content)
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            with self._said:
                self._keep(message, list(given))
                self.told.append(message)
                self._said.notify_all()

    def _keep(self, message: dict[str, str], given: list[int]) -> None:
        name = message.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in message and name in self.store:
            os.close(self.store.pop(name))
        for fd in given:
            if "FDSTORE" in message and len(self.store) < self.keeps and name not in self.store:
                self.store[name] = fd
            else:
                os.close(fd)

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.address)
        self._thread.join(PATIENCE)
        self._socket.close()
        for fd in self.store.values():
            os.close(fd)
