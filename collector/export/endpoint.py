"""One document at an address, for whoever can connect: the metrics."""

from __future__ import annotations

import socket
from collections.abc import Callable

from collector.export.server import BACKLOG, Reply, Request, Server

# For the value of `Accept`: the content type and the document
Answer = Callable[[str], tuple[str, bytes]]


class Endpoint(Server):
    """Serves from its making on, until `close`. OSError if the address cannot be listened on."""

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        """port 0: any free one, see `port`. answer: called in the thread of the endpoint."""
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        self.port = int(listener.getsockname()[1])
        self._answer = answer
        super().__init__(listener, self._document, "metrics")

    def _document(self, request: Request) -> Reply:
        return Reply(*self._answer(request.accept))
