"""The built-in dumper `container`: a crash goes to the handler inside of its container.

    dumpers:
      - {name: container, module: "collector.dumpers.container:Container", match: {container: yes}}

A container asks for it as it asks systemd-coredump(8): its unit on the host has `Delegate=yes` and
`CoredumpReceive=yes` (systemd.resource-control(5)), which systemd notes as extended attributes of
the unit's cgroup. The handler is the socket of the container's own systemd-coredump. It is given
what that is told by one of the host: ids and names as they are inside, and the core as a stream.
Then the crash is the container's alone; whoever asks for nothing, and whose handler is not there,
has his crashes kept by the next bidder, at last by the policy of the host.

The container is hostile: its files are looked up beneath its own root, and what it makes us wait
for has a limit of time (and all of it the plugin's `timeout`).
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from collector.dumpers.plugin import NOMATCH, SPECIAL, HeldProcess, StreamWriter, write_core
from collector.linux import procfs
from collector.linux.cgroupfs import path_in, unified_mount
from collector.linux.filesystems import open_beneath
from collector.linux.procfs import parse_stat

SOCKET = "run/systemd/coredump"  # in the container; RECEIVE_SOCKET of systemd
# attributes of a unit's cgroup that systemd sets: both are to say yes
_DELEGATED = ("trusted.delegate", "user.delegate")
_RECEIVES = "user.coredump_receive"
_TIMEOUT_S = 10.0  # for each step of the handler
_MAX_PARENTS = 64
_MAX_VALUE = 4096  # bytes of a field
_NO_LIMIT = (1 << 64) - 1  # RLIM_INFINITY


class Container:
    """A plugin; see the module."""

    name = "container"

    def __init__(self) -> None:
        self.note: str | None = None

    def probe(self, process: HeldProcess) -> int:
        return SPECIAL if asking_leader(process) is not None else NOMATCH

    def handle(self, process: HeldProcess, limit: int | None) -> int | None:
        leader = asking_leader(process)
        if leader is None:
            return errno.ESRCH
        with Leader(leader) as container, container.connect() as peer:
            for name, value in container.fields(process).items():
                peer.send(
                    f"COREDUMP_{name}={value}".encode("utf-8", "surrogateescape")[:_MAX_VALUE]
                )
            size = _send_core(process, peer, limit)
        self.note = f"{size} bytes to the handler of its container"
        return None


def _send_core(process: HeldProcess, peer: socket.socket, limit: int | None) -> int:
    """The end of a pipe for the handler, and the core through it; its size. OSError (EPIPE) if the
    handler does not want all of it: then the next bidder has the process as well."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:  # an empty packet ends the fields
            rights = array.array("i", [reading])
            peer.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            peer.shutdown(socket.SHUT_WR)
        finally:
            os.close(reading)
        return write_core(process, StreamWriter(writing), limit=limit).size
    finally:
        os.close(writing)


def asking_leader(process: HeldProcess) -> int | None:
    """The first process of the container that this one is in, if it asks for crashes."""
    leader = leader_of(process.pid)
    if leader is None or leader == process.pid:  # it is the init that has crashed
        return None
    text = procfs.read(f"/proc/{leader}/cgroup") or b""
    path, mount = path_in(text) if text else None, unified_mount()
    if path is None or mount is None:
        return None
    unit = unit_path(path)
    return leader if unit is not None and receives(Path(mount + unit)) else None


def leader_of(pid: int) -> int | None:
    """The init of the pid namespace that a process is in, by the way up to it; None: it is in ours,
    or does not descend from it (nsenter(1))."""
    depth: int | None = None
    for _ in range(_MAX_PARENTS):
        status = procfs.read(f"/proc/{pid}/status") or b""
        ids = (procfs.field(status, b"NSpid") or b"").split()
        depth = len(ids) if depth is None else depth
        if len(ids) != depth or depth < 2:
            return None
        if ids[-1] == b"1":
            return pid
        stat = procfs.read(f"/proc/{pid}/stat")
        if not stat:
            return None
        pid = parse_stat(stat).ppid
    return None


def unit_path(path: str) -> str | None:
    """The cgroup of the host's unit that a cgroup is in: all slices, and what is in the last one.

    What is below that may be the container's own, who could say there whatever he likes.
    """
    found = ""
    for part in path.strip("/").split("/"):
        found += f"/{part}"
        if not part.endswith(".slice"):
            return found if part.endswith((".service", ".scope")) else None
    return None


def receives(cgroup: Path) -> bool:
    """Whether a unit's cgroup is delegated, and asks for crashes."""
    return any(_says_yes(cgroup, name) for name in _DELEGATED) and _says_yes(cgroup, _RECEIVES)


def _says_yes(cgroup: Path, name: str) -> bool:
    try:
        return os.getxattr(cgroup, name) in (b"1", b"yes", b"true")
    except OSError:
        return False


class Leader:
    """The init of a container, and what is reached through it. A context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        with contextlib.ExitStack() as until:
            self._pidfd = os.pidfd_open(pid)
            until.callback(os.close, self._pidfd)
            self._root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
            until.callback(os.close, self._root)
            self._uids, self._gids = (
                parse_map((procfs.read(f"/proc/{pid}/{kind}_map") or b"").decode())
                for kind in ("uid", "gid")
            )
            self._open = until.pop_all()

    def connect(self) -> socket.socket:
        """A connection to the handler. OSError if there is none."""
        fd = open_beneath(self._root, SOCKET)
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            peer.settimeout(_TIMEOUT_S)
            peer.connect(f"/proc/self/fd/{fd}")
        except BaseException:
            peer.close()
            raise
        finally:
            os.close(fd)
        return peer

    def fields(self, process: HeldProcess) -> dict[str, object]:
        """What systemd-coredump wants to know, as it is inside of the container."""
        limit = _NO_LIMIT if process.core_limit is None else process.core_limit
        found: dict[str, object] = {
            "PID": process.ns_pid or process.pid,
            "UID": inside(self._uids, process.uid),
            "GID": inside(self._gids, process.gid),
            "SIGNAL": process.signal,
            "TIMESTAMP": time.time_ns() // 1000,
            "RLIMIT": limit,
            "HOSTNAME": self._hostname(),
            "DUMPABLE": 1,  # others are not handed over
            "COMM": process.name,
            "EXE": process.exe,
            "CMDLINE": " ".join(process.arguments) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _hostname(self) -> str:
        """Of the container: it has told it to the kernel, in a file that shows it to itself."""
        with contextlib.suppress(OSError):
            fd = open_beneath(self._root, "etc/hostname")
            try:
                with open(f"/proc/self/fd/{fd}", "rb", opener=_opened_without_waiting) as file:
                    return file.read(64).decode("ascii", "replace").strip() or "container"
            finally:
                os.close(fd)
        return "container"

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _opened_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def parse_map(text: str) -> list[tuple[int, int, int]]:
    """The lines of /proc/PID/uid_map (user_namespaces(7)): inside, outside, how many."""
    lines = (line.split() for line in text.splitlines())
    return [(int(a), int(b), int(c)) for a, b, c in lines]


def inside(lines: list[tuple[int, int, int]], number: int | None) -> int | None:
    """An id of ours as it is in the container; 65534, as the kernel has it, where it has none."""
    if number is None:
        return None
    for first, outside, count in lines:
        if outside <= number < outside + count:
            return first + number - outside
    return 65534
