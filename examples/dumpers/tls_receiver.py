"""A collector for tls_stream.py: takes cores over TLS, and keeps them in a folder.

    python tls_receiver.py HOST:PORT FOLDER --cert FILE --key FILE [--clients FILE]

With --clients only dumpers are heard that have a certificate of the authority in FILE. Who sends
nothing for ten seconds is dropped, and so is a core of more than --most bytes. A core is there when
it is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tls_stream import DATA, END, FRAME, HOLE, MAX_FRAME, MAX_LINE, TIMEOUT, VERSION

MOST = 64 << 30  # bytes of a core
_AT_A_TIME = 16  # connections


class Wrong(Exception):
    """What came is no core."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--clients", metavar="FILE")
    parser.add_argument("--most", type=int, default=MOST, metavar="BYTES")
    args = parser.parse_args()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=args.clients)
    context.load_cert_chain(args.cert, args.key)
    if args.clients:
        context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = args.address.rpartition(":")
    turns = threading.BoundedSemaphore(_AT_A_TIME)
    with socket.create_server((host, int(port))) as listener:
        print(f"listening on port {listener.getsockname()[1]}", flush=True)
        while True:
            turns.acquire()
            plain, _ = listener.accept()
            plain.settimeout(TIMEOUT)
            work = (plain, context, args.folder, args.most, turns.release)
            threading.Thread(target=serve, args=work, daemon=True).start()


def serve(
    plain: socket.socket,
    context: ssl.SSLContext,
    folder: Path,
    most: int,
    done: Callable[[], None],
) -> None:
    """One connection, to its end."""
    try:
        # not in the thread that accepts: a handshake may take its time
        with plain, context.wrap_socket(plain, server_side=True) as peer:
            with peer.makefile("rb") as stream:
                try:
                    answer = f"kept {receive(stream, folder, most)}"
                except Wrong as error:
                    answer = str(error)
                except OSError as error:
                    answer = f"not stored: {error}"
            print(answer, flush=True)
            said = "stored" if answer.startswith("kept ") else answer
            peer.sendall(said.encode("ascii", "replace") + b"\n")
    except OSError as error:  # ssl.SSLError is one
        print(f"a connection failed: {error}", flush=True)
    finally:
        done()


def receive(stream: BinaryIO, folder: Path, most: int) -> str:
    """Take one core; the name of its file, which is ours. Wrong, OSError: there is none."""
    facts = head_of(stream.readline(MAX_LINE))
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part") as file:
        size = 0
        while True:
            kind, length = FRAME.unpack(exactly(stream, FRAME.size))
            if kind == END:
                break
            if kind not in (DATA, HOLE) or (kind == DATA and length > MAX_FRAME):
                raise Wrong(f"no frame: {kind!r} of {length} bytes")
            size += length
            if size > most:
                raise Wrong(f"a core may have {most} bytes here")
            if kind == DATA:
                file.write(exactly(stream, length))
            else:
                file.seek(length, os.SEEK_CUR)
        if length != size:
            raise Wrong(f"{length} bytes were to come, {size} came")
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
        name = f"{facts['pid']}-{Path(file.name).stem}.core"
        os.link(file.name, folder / name)
    return name


def head_of(line: bytes) -> dict[str, int]:
    """The facts of the first line that are of use here."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = json.loads(line)
        if found["version"] == VERSION:
            return {"pid": int(found["pid"])}
    raise Wrong(f"no core of version {VERSION} begins with that")


def exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise Wrong("the connection ended before the core")
    return data


if __name__ == "__main__":
    main()
