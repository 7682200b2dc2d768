"""An OpenAI-compatible chat server for tests, with scripted answers: `judge_server.serving()`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers each chat request with what `reply` returns: a text, a status with headers and an error, or
    the bytes of a whole body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Callable[[str, int], Any] = lambda content, number: "\\boxed{3}"
        self.models: Any = (200, {"data": [{"id": "judge"}]})
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.busiest = self.busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(*self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.requests.append(content)
            self.server.tokens.append(self.headers.get("Authorization"))
            number = len(self.server.requests)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        reply = self.server.reply(content, number)
        with self.server.lock:
            self.server.busy -= 1
        if isinstance(reply, bytes):
            self._send(200, reply)
        elif isinstance(reply, tuple):
            self._send(reply[0], {"error": reply[2] if len(reply) > 2 else "no"}, reply[1])
        else:
            usage = {"prompt_tokens": 10, "completion_tokens": 2}
            self._send(200, {"choices": [{"message": {"content": reply}}], "usage": usage})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A running server, stopped after the block."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def shown(content: str) -> list[str]:
    """The responses of a request, in the order in which they are shown."""
    return re.findall(r"\[Response(?: \d)?\]\n(.*?)\n\[End", content, re.DOTALL)
