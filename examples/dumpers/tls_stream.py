"""A dumper that streams each core over TLS to a collector elsewhere; nothing of it is on this disk.

    python tls_stream.py SOCKET HOST:PORT --ca FILE [--cert FILE --key FILE] [--timeout SECONDS]
                         [--match FIELD=VALUE]... [--pin]

The collector's certificate must be one of the authority in FILE, for the name HOST; with --cert the
collector can check ours as well. tls_receiver.py is such a collector. What one says to the other:

    dumper:    a line of JSON: version, pid, name, exe, signal, size (of the whole core, bytes)
               `D`, length, so many bytes of the core      (length: 8 bytes, little endian)
               `H`, length: a hole of so many zeros, which are not sent
               `E`, length of the core: it is whole
    collector: `stored`, or why it is not; and a newline

The process goes when its core is stored. If that takes longer than the agent lets us have it, or
nothing moves for --timeout, the next dumper has its turn, and at last the policy.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from collector.dumpers.client import Client
from collector.dumpers.plugin import SPECIAL, HeldProcess, WriterParams, write_core
from collector.dumpers.protocol import Message

VERSION = 1
DATA, HOLE, END = b"D", b"H", b"E"
FRAME = struct.Struct("<cQ")
MAX_FRAME = 64 << 10  # bytes of data
MAX_LINE = 4096  # bytes of either side's line
TIMEOUT = 10.0  # seconds


class TlsWriter:
    """A writer (see docs/dumpers.md): each of its calls becomes a frame."""

    def __init__(self, peer: ssl.SSLSocket, facts: dict[str, object], deadline: float) -> None:
        """facts: of the first line. deadline: of time.monotonic(), for all of it."""
        self._peer, self._facts, self._deadline = peer, facts, deadline
        self._timeout = peer.gettimeout() or TIMEOUT
        self._position = 0

    def init(self, params: WriterParams) -> None:
        line = json.dumps({"version": VERSION, **self._facts, "size": params.size})
        self._send(line.encode() + b"\n")

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            part, view = view[:MAX_FRAME], view[MAX_FRAME:]
            self._send(FRAME.pack(DATA, len(part)))
            self._send(part)
        self._position = offset + len(data)

    def extend(self, size: int) -> None:
        self._send(FRAME.pack(HOLE, size))
        self._position += size

    def close(self) -> None:
        """It is whole: wait until it is stored. OSError if it is not."""
        self._send(FRAME.pack(END, self._position))
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < MAX_LINE:
            self._peer.settimeout(self._left())
            part = self._peer.recv(MAX_LINE)
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the collector did not answer")
            answer += part
        if answer.strip() != b"stored":
            raise OSError(errno.EREMOTEIO, answer.decode("ascii", "replace").strip()[:200])

    def abort(self) -> None:
        """The collector sees that it is not whole, for there is no `E`."""

    def _send(self, data: bytes | memoryview) -> None:
        self._peer.settimeout(self._left())
        self._peer.sendall(data)

    def _left(self) -> float:
        """Seconds for the next step. TimeoutError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the core could not be sent in time")
        return min(left, self._timeout)


class Collector:
    """Where cores go."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, timeout: float) -> None:
        """timeout: seconds in which something has to move."""
        self._host, self._port, self._context, self._timeout = host, port, context, timeout

    @contextlib.contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        """A connection to it, and no other. OSError; ssl.SSLError is one."""
        address = (self._host, self._port)
        with (
            socket.create_connection(address, self._timeout) as plain,
            self._context.wrap_socket(plain, server_hostname=self._host) as peer,
        ):
            yield peer

    def take(self, process: HeldProcess, seconds: float) -> int:
        """Send its core, in so many seconds at most; the size of the core in bytes."""
        deadline = time.monotonic() + seconds
        facts: dict[str, object] = {
            "pid": process.pid,
            "name": process.name,
            "exe": process.exe,
            "signal": process.signal,
        }
        try:
            with self.connected() as peer:
                writer = TlsWriter(peer, facts, deadline)
                return write_core(process, writer, limit=process.limit).size
        except ssl.SSLError as error:  # its errno is none of the kernel's
            raise OSError(errno.EPROTO, error.strerror or str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("collector", metavar="HOST:PORT")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("--match", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--pin", action="store_true")
    args = parser.parse_args()
    host, _, port = args.collector.rpartition(":")
    context = ssl.create_default_context(cafile=args.ca)  # checks certificate and name
    if args.cert:
        context.load_cert_chain(args.cert, args.key)
    collector = Collector(host.strip("[]"), int(port), context, args.timeout)
    match = [tuple(one.split("=", 1)) for one in args.match]

    def dump(event: Message) -> str:
        most_s = event.number("most_ms", 0, 1 << 40) / 1e3
        return f"{collector.take(HeldProcess(event), most_s)} bytes to {args.collector}"

    with Client.connect(
        args.socket, "tls-stream", priority=SPECIAL, match=match, pin=args.pin
    ) as client:
        print("registered", flush=True)
        client.dump_each(dump)


if __name__ == "__main__":
    main()
