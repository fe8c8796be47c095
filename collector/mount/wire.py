"""What the process that holds a snapshot and the mount say to each other, over a stream socket.

    holder: Ready, once                                 length, then JSON
    mount:  offset and length of the bytes it wants     two u64
    holder: error number (0: none) and length, bytes    u32, u64, then the bytes, or words

Both sides take turns. Whoever closes its end ends the snapshot.
"""

from __future__ import annotations

import socket
import struct
import time

import msgspec

WANT = struct.Struct("<QQ")
HAVE = struct.Struct("<IQ")
MAX_READ = 8 << 20  # bytes of one answer
_LENGTH = struct.Struct("<I")
_MAX_READY = 1 << 16


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot is taken, or `error` says why not."""

    size: int = 0  # of the core, bytes
    text: str = ""  # how it was taken
    error: str | None = None


def send_ready(end: socket.socket, ready: Ready) -> None:
    """Say that there is a snapshot. OSError if nobody listens."""
    text = msgspec.json.encode(ready)
    end.sendall(_LENGTH.pack(len(text)) + text)


def receive_ready(end: socket.socket, deadline: float) -> Ready:
    """Wait for it until `deadline` (of time.monotonic()). OSError, EOFError as `receive`."""
    (length,) = _LENGTH.unpack(receive(end, _LENGTH.size, deadline))
    if length > _MAX_READY:
        raise ValueError(f"an answer of {length} bytes")
    return msgspec.json.decode(receive(end, length, deadline), type=Ready)


def receive(end: socket.socket, size: int, deadline: float) -> bytearray:
    """Exactly so many bytes. EOFError if the other side ends before; TimeoutError; OSError."""
    data = bytearray(size)
    with memoryview(data) as view:
        done = 0
        while done < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            end.settimeout(left)
            count = end.recv_into(view[done:])
            if not count:
                raise EOFError("the other side has ended")
            done += count
    return data
