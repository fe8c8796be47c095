"""A collector of OpenTelemetry for tests: a real HTTP server that takes what it is sent apart."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 60.0


class Collector:
    """Takes logs at /v1/logs; `answers` are given first, one a request."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._heard = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, answer = outer.take(self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/logs"

    def take(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self._heard:
            assert path == "/v1/logs"
            answer = self.answers.pop(0) if self.answers else (200, {}, b"{}")
            if answer[0] == 200:
                self.requests.append(json.loads(body))
            self.headers.append(headers)
            self._heard.notify_all()
            return answer

    def wait(self, count: int) -> list[dict[str, Any]]:
        """All deaths, when there are so many."""
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.deaths) >= count, PATIENCE)
            return self.deaths

    @property
    def deaths(self) -> list[dict[str, Any]]:
        found = []
        for request in self.requests:
            for resource in request["resourceLogs"]:
                for scope in resource["scopeLogs"]:
                    found += scope["logRecords"]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(log: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: next(iter(one["value"].values())) for one in log["attributes"]}
