"""What the process that holds a snapshot and the mount say to each other, over a stream socket.

    mount:  HoldJob, once                               length, then JSON
    holder: Ready, once                                 length, then JSON
    mount:  offset and length of the bytes it wants     two u64; length 0: where the next data is
    holder: error number (0: none) and length, bytes    u32, u64, then the bytes, or words; for a
                                                        length of 0 two u64, or nothing: none

Both sides take turns. Whoever closes its end ends the snapshot.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TypeVar

import msgspec

from collector.model import SnapshotMode
from collector.redact.types import Redact

WANT = struct.Struct("<QQ")
HAVE = struct.Struct("<IQ")
DATA_AT = struct.Struct("<QQ")
MAX_READ = 8 << 20  # bytes of one answer
_LENGTH = struct.Struct("<I")
# bytes: a policy has a MiB, and a character of it six in JSON; who holds a process says a sentence
_MAX_JOB, _MAX_READY = 8 << 20, 1 << 18


class HoldJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to hold."""

    pid: int
    start_ns: int  # of the process that is meant
    mode: SnapshotMode
    max_age: float  # seconds
    viewer: int | None  # the uid for whom it is, unless it is one who may see everything
    door: str | None = None  # of an agent: the process waits there for its dumper
    redact: Redact = Redact()


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot is taken, or `error` says why not."""

    size: int = 0  # of the core, bytes
    text: str = ""  # how it was taken
    error: str | None = None


Message = TypeVar("Message", HoldJob, Ready)


def send_message(end: socket.socket, message: HoldJob | Ready) -> None:
    """Send a message. OSError if nobody listens."""
    text = msgspec.json.encode(message)
    end.sendall(_LENGTH.pack(len(text)) + text)


def receive_message(
    end: socket.socket, kind: type[Message], deadline: float | None = None
) -> Message:
    """Wait for a message. Raises as `receive`, and ValueError for nonsense."""
    (length,) = _LENGTH.unpack(receive(end, _LENGTH.size, deadline))
    if length > (_MAX_JOB if kind is HoldJob else _MAX_READY):
        raise ValueError(f"a message of {length} bytes")
    return msgspec.json.decode(receive(end, length, deadline), type=kind)


def receive(end: socket.socket, size: int, deadline: float | None = None) -> bytearray:
    """Exactly so many bytes, until `deadline` (of time.monotonic()).

    EOFError if the other side ends before; TimeoutError; OSError.
    """
    data = bytearray(size)
    with memoryview(data) as view:
        done = 0
        while done < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            end.settimeout(left)
            count = end.recv_into(view[done:])
            if not count:
                raise EOFError("the other side has ended")
            done += count
    return data
