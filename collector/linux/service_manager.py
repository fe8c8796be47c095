"""The service manager that has started us: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

It tells us by environment variables where its socket is, how often it wants to hear that we are
alive, and which descriptors it has kept of our predecessor (its descriptor store, FDSTORE=1). What
this is not: a way to ask it something; that is systemd.py. A manager that does not listen is no
error of ours: what we tell it then is lost, and logged.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import MutableMapping, Sequence

log = logging.getLogger(__name__)

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST_PASSED = 1024  # descriptors; more is no environment that a service manager has made
_SEND_S = 1.0  # for a manager whose queue is full
_LINE = 1000  # bytes of a status
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
_PASSED = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class ServiceManager:
    """What it wants of us, and the way to tell it something. Thread-safe."""

    def __init__(
        self,
        address: str,
        watchdog_s: float | None = None,
        keeps: int = 0,
        kept: dict[str, int] | None = None,
    ) -> None:
        """address: of its socket; a leading @ is the abstract namespace (unix(7)). watchdog_s: it
        ends us if it hears nothing for so long; None: never. keeps: descriptors at most. kept:
        those that it has kept, which are ours; whoever uses one takes it out."""
        self.address, self.watchdog_s, self.keeps = address, watchdog_s, keeps
        self.kept = {} if kept is None else kept

    def tell(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Send assignments, and copies of descriptors; whether it has them now."""
        target = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.settimeout(_SEND_S)
                to.sendmsg(["\n".join(lines).encode()], control, 0, target)
        except OSError as error:
            log.warning("the service manager was not told %s: %s", lines[0], error)
            return False
        return True

    def reloading(self) -> None:
        """The configuration is being read again; READY=1 ends that (Type=notify-reload)."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.tell("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def keep(self, name: str, fd: int) -> bool:
        """Have a copy of a descriptor kept for the next instance, under this name."""
        # FDPOLL=0: also one at which poll(2) sees an error
        return self.keeps > 0 and self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=(fd,))

    def forget(self, name: str) -> None:
        """Close what it has under this name."""
        self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def forget_kept(self) -> None:
        """The same with all that nobody has taken out of `kept`."""
        while self.kept:
            name, fd = self.kept.popitem()
            os.close(fd)
            self.forget(name)


def status(text: str) -> str:
    """The assignment that shows a text to people, in one line."""
    line = _CONTROL.sub(" ", text).encode("utf-8", "replace")[:_LINE]
    return f"STATUS={line.decode('utf-8', 'ignore')}"


def from_environment(environment: MutableMapping[str, str]) -> ServiceManager | None:
    """The manager that has started this process; None: nobody did who wants to hear of it.

    Its variables are taken away, so that no child takes them for its own.
    """
    kept = passed(environment)
    values = {name: environment.pop(name, "") for name in _OURS}
    address = values["NOTIFY_SOCKET"]
    if not address:
        return None
    if address[0] not in "/@" or len(address) < 2:
        log.warning("NOTIFY_SOCKET=%r: neither a path nor @name: nothing is told to it", address)
        return None
    watchdog = _number(values["WATCHDOG_USEC"])
    if values["WATCHDOG_PID"] and _number(values["WATCHDOG_PID"]) != os.getpid():
        watchdog = 0
    watchdog_s = watchdog / 1e6 if watchdog else None
    return ServiceManager(address, watchdog_s, _number(values["FDSTORE"]), kept)


def passed(environment: MutableMapping[str, str], first: int = _FIRST) -> dict[str, int]:
    """Descriptors that the manager has kept of our predecessor, or opened for us, by their names.

    They are ours from now on, and are not inherited. Of two with the same name the later one is
    closed, and so is one without a name. first: number of the first one.
    """
    values = {name: environment.pop(name, "") for name in _PASSED}
    count = _number(values["LISTEN_FDS"])
    if not count or _number(values["LISTEN_PID"]) != os.getpid():
        return {}
    names = values["LISTEN_FDNAMES"].split(":")
    found: dict[str, int] = {}
    for index in range(min(count, _MOST_PASSED)):
        fd = first + index
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:
            continue  # it is not open
        name = names[index] if index < len(names) else ""
        if name and name not in found:
            found[name] = fd
        else:
            os.close(fd)
    return found


def _number(text: str) -> int:
    """0 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
