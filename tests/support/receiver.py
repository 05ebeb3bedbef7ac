"""A server that webhooks are sent to, in threads of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: tuple[str, int]
    at: float = field(default_factory=time.monotonic)

    @property
    def payload(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def upload(self) -> dict[str, Any]:
        value: dict[str, Any] = self.payload["data"]["upload"]
        return value

    def signed_by(self, *secrets: str) -> bool:
        """Whether it is signed by each, in that order: computed by the scheme's text."""
        found = self.headers["webhook-signature"].split(" ")
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        expected = []
        for secret in secrets:
            key = base64.b64decode(secret.split("_", 1)[1])
            mac = hmac.new(key, content + self.body, hashlib.sha256).digest()
            expected.append("v1," + base64.b64encode(mac).decode())
        return found == expected


@dataclass
class Answer:
    """What a request is answered with, after `wait` is set."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait: threading.Event | None = None
    broken: bool = False
    """The connection is closed without a word."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As its base does, but for senders that were killed, of which nobody wants to read."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Receiver:
    """Notes what it gets; answers as `answer` says."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], Answer] = lambda _: Answer()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True  # the sender was killed in the middle
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                got = Received(self.command, self.path, headers, body, self.client_address)
                receiver.received.append(got)
                answer = receiver.answer(got)
                if answer.wait is not None:
                    answer.wait.wait(20)
                if answer.broken:
                    self.close_connection = True
                    return
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    if answer.status != 204:
                        self.send_header("content-length", str(len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
