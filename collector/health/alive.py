"""Whether the agent answers at its health socket: for probes, which ask every minute.

    python3 -m collector.health.alive [--ready] SOCKET

Exit status 0 if it does; with --ready, if deaths are seen as well. Imports next to nothing.
"""

from __future__ import annotations

import json
import socket
import sys

_TIMEOUT_S = 5.0
_MOST = 1 << 16  # bytes of an answer
_REQUEST = b"GET /v1/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def trouble(path: str, *, ready: bool) -> str | None:
    """What is wrong, in a sentence; None: nothing."""
    try:
        answer = _ask(path)
    except OSError as error:
        return f"{path}: nobody answers: {error.strerror or error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        return f"{path}: the answer is no state of an agent"
    if not ready:
        return None
    try:
        state = json.loads(body)
        bpf, handoff, ours = state["bpf"], state["handoff"], state["core_pattern_ours"]
    except (ValueError, KeyError, TypeError):
        return f"{path}: the answer is no state of an agent"
    if bpf == handoff == "none":
        return "it sees no death: neither BPF nor a hand-off works"
    if ours is False:
        return "others have kernel.core_pattern: no crash is handed over"
    return None


def _ask(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(_TIMEOUT_S)
        peer.connect(path)
        peer.sendall(_REQUEST)
        answer = b""
        while len(answer) < _MOST and (part := peer.recv(_MOST)):
            answer += part
        return answer


def main(arguments: list[str]) -> int:
    *options, path = arguments or [""]
    if not path or options not in ([], ["--ready"]):
        print("usage: alive [--ready] SOCKET", file=sys.stderr)
        return 2
    why = trouble(path, ready=bool(options))
    if why is not None:
        print(why)
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
