"""Who is at the other end of a connected AF_UNIX socket, as the kernel says: unix(7), socket(7).

What it tells was so when the other side connected (connect(2)), or made the pair. Descriptors can
be handed on since: SO_PASSCRED tells who really sent a packet.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("<3i")
_PEERGROUPS, _PEERPIDFD = 59, 77  # <asm-generic/socket.h>; Linux 4.13, 6.5
_MAX_GROUPS = 65536  # NGROUPS_MAX <linux/limits.h>
_libc = ctypes.CDLL(None, use_errno=True)


class Peer(NamedTuple):
    """A process in our own namespaces; pid 0: it is in none that we see."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED. OSError as getsockopt(2)."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def groups_of(connection: socket.socket) -> set[int]:
    """Its group, and its supplementary groups (SO_PEERGROUPS). OSError as getsockopt(2)."""
    groups = (ctypes.c_uint32 * _MAX_GROUPS)()  # Python's own getsockopt takes 256 at most
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    result = _libc.getsockopt(
        connection.fileno(), socket.SOL_SOCKET, _PEERGROUPS, groups, ctypes.byref(size)
    )
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return {peer_of(connection).gid, *groups[: size.value // 4]}


def pidfd_of(connection: socket.socket) -> int:
    """A descriptor of the process itself (SO_PEERPIDFD), which the caller closes.

    Before Linux 6.5 by its pid (pidfd_open(2)), which may be another's if it has ended. OSError if
    there is none.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _PEERPIDFD)
    except OSError:
        return os.pidfd_open(peer_of(connection).pid)
