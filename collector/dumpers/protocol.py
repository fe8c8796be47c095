"""The messages between the agent and a dumper: docs/dumpers.md is their reference.

One message is one packet of a SOCK_SEQPACKET socket (unix(7)): a verb on the first line, then a
line `key=value` for each field, in any order; a key may come more than once. In values `\\` is
written `\\\\` and a newline `\\n`; all else stands for itself, byte by byte. Descriptors come with
the packet (SCM_RIGHTS); the field `fds` names them in their order. Every packet of a dumper is one
of its own process: the kernel adds the sender's pid (SCM_CREDENTIALS).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from collector.errors import CorewardError

VERSION = 1
MAX_PACKET = 16 << 10  # bytes, of either side
MAX_FDS = 16
MAX_TEXT = 256  # characters of a note or a reason that is kept
# What a probe bids, as coredumper_register(9) of FreeBSD has it; any number above 0 is good
NOMATCH, GENERIC, SPECIAL, HIGHPRIORITY = -1, 0, 50, 100
MAX_PRIORITY = 1 << 30

_CREDENTIALS = struct.Struct("<3i")  # struct ucred
_ROOM = socket.CMSG_SPACE(MAX_FDS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)


class BadMessage(CorewardError):
    """A packet that is no message of this protocol, or not one for this moment."""


class Gone(CorewardError):
    """The other side has closed the connection."""


class Message(msgspec.Struct, frozen=True):
    """One message; `fds` are descriptors that come with it, by name, and belong to who has it."""

    verb: str
    fields: tuple[tuple[str, str], ...] = ()
    fds: dict[str, int] = {}
    sender: int | None = None  # pid of who sent it; None: not asked for

    def get(self, key: str) -> str | None:
        """The last value of a field; None: it has none."""
        return next((value for name, value in reversed(self.fields) if name == key), None)

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.fields if name == key]

    def number(self, key: str, least: int, most: int) -> int:
        """A whole number from `least` to `most`. BadMessage if it is not one."""
        text = self.get(key)
        try:
            value = int(text or "")
        except ValueError:
            raise BadMessage(f"{self.verb}: {key}={text or ''}: not a number") from None
        if not least <= value <= most:
            raise BadMessage(f"{self.verb}: {key}={value}: not from {least} to {most}")
        return value

    def flag(self, key: str) -> bool:
        """Whether a field is `yes`; `no` if it is absent. BadMessage for anything else."""
        value = self.get(key) or "no"
        if value not in ("yes", "no"):
            raise BadMessage(f"{self.verb}: {key}={value[:MAX_TEXT]}: neither yes nor no")
        return value == "yes"

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def message(verb: str, **fields: object) -> Message:
    """Of the fields those that are None are left out; True is `yes`, False `no`."""
    given = ((key, value) for key, value in fields.items() if value is not None)
    return Message(verb, tuple((key, _text(value)) for key, value in given))


def encode(message: Message) -> bytes:
    """Without its descriptors, but with their names."""
    fields = message.fields
    if message.fds:
        fields = (*fields, ("fds", " ".join(message.fds)))
    lines = [message.verb, *(f"{key}={_escaped(value)}" for key, value in fields)]
    return os.fsencode("\n".join(lines)) + b"\n"


def decode(packet: bytes) -> Message:
    """A message without descriptors. BadMessage if it is none."""
    verb, *lines = os.fsdecode(packet.removesuffix(b"\n")).split("\n")
    if not (verb.isascii() and verb.isupper() and verb.isalpha()):
        raise BadMessage(f"not a message: its first line is {verb[:32]!r}")
    fields = []
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise BadMessage(f"{verb}: {line[:64]!r} is no field")
        fields.append((key, _unescaped(value)))
    return Message(verb, tuple(fields))


def send(connection: socket.socket, message: Message) -> None:
    """OSError as sendmsg(2) gives it; descriptors stay the caller's."""
    rights = array.array("i", message.fds.values())
    how = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    connection.sendmsg([encode(message)], how, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> Message:
    """The next message; its descriptors are close-on-exec and the caller's.

    BadMessage if it is none, Gone at the end, OSError (also BlockingIOError) as recvmsg(2).
    """
    packet, ancillary, flags, _ = connection.recvmsg(MAX_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    sender = None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += array.array("i", data[: len(data) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender, _, _ = _CREDENTIALS.unpack(data)
    try:
        if not packet and not flags & socket.MSG_TRUNC:
            raise Gone("the other side has closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadMessage(f"a message of more than {MAX_PACKET} bytes or {MAX_FDS} descriptors")
        found = decode(packet)
        return Message(found.verb, found.fields, _named(found, fds), sender)
    except CorewardError:
        for fd in fds:
            os.close(fd)
        raise


def refuse(connection: socket.socket, why: str) -> None:
    """Say why, and close the connection.

    What was not read is read before: else the other side would be told of an error instead.
    """
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        send(connection, message("REFUSED", why=why))
        while connection.recv(MAX_PACKET):
            pass
    connection.close()


def _named(message: Message, fds: Sequence[int]) -> dict[str, int]:
    names = (message.get("fds") or "").split()
    if len(names) != len(fds) or len(set(names)) != len(names):
        raise BadMessage(f"{message.verb}: {len(fds)} descriptors, {len(names)} names")
    return dict(zip(names, fds, strict=True))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return "\\".join(part.replace("\\n", "\n") for part in value.split("\\\\"))
