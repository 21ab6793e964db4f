"""A Consul agent on loopback, as far as a worker speaks to one: it can lose registrations, refuse, and go down."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class FakeConsul:
    """Knows services by id. `token` is what it asks for, where it asks for one."""

    def __init__(self, port: int = 0, token: str = "") -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.reports: list[tuple[str, str, str]] = []
        self.registered = 0
        self.token = token
        self.answer_with = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                status, text = fake._put(self.path, body, self.headers.get("X-Consul-Token", ""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lose(self) -> None:
        """As an agent does that restarts without its data."""
        self.services.clear()

    def down(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _put(self, path: str, body: Any, token: str) -> tuple[int, bytes]:
        if self.answer_with:
            return self.answer_with, b"<html>sorry</html>"
        if self.token and token != self.token:
            return 403, b"Permission denied"
        path = unquote(path)
        if path == "/v1/agent/service/register":
            self.services[body["ID"]] = body
            self.registered += 1
            return 200, b""
        if path.startswith("/v1/agent/check/update/"):
            check = path.removeprefix("/v1/agent/check/update/")
            if check not in {service["Check"]["CheckID"] for service in self.services.values()}:
                return 404, f'Unknown check ID "{check}"'.encode()
            self.reports.append((check, body["Status"], body["Output"]))
            return 200, b""
        if path.startswith("/v1/agent/service/deregister/"):
            known = self.services.pop(path.removeprefix("/v1/agent/service/deregister/"), None)
            return (200, b"") if known else (404, b"Unknown service ID")
        return 405, b""
