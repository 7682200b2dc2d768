"""A reward model behind HTTP: `POST /score` and `GET /health`, JSON in and out, a bearer token on every request.

    POST /score {"conversations": [[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], ...]}
      -> {"scores": [{"reward": x, "attributes": {...}} or {"error": "..."}, ...]}
    GET /health -> {"status": "ok", "protocol": 1, "model": ..., "attributes": [...], "max_conversations": ...}

One thread scores, in the order requests came in. A conversation that cannot be scored is told in its place and spoils no other. There
is no encryption: beyond this machine, put a proxy or a tunnel in front.
"""

from __future__ import annotations

import hmac
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol

from reward.scorer import score_each
from rlhf.config.rewards import SERVER_PROTOCOL
from rlhf.core.errors import DataError, RlhfError
from rlhf.core.records import Conversation, is_unicode
from rlhf.data.messages import read_prompt
from rlhf.data.rows import Row

MAX_BYTES = 16 * 2**20
MAX_CONVERSATIONS = 256
SLOW_CLIENT = 30.0
"""Seconds that a client may be silent in the middle of a request."""


class ScorerLike(Protocol):
    """What is served."""

    @property
    def attributes(self) -> Sequence[str]:
        """Names of what it rates."""
        ...

    def score(self, conversations: Sequence[Conversation]) -> Sequence[Any]:
        """One score with `reward` and `attributes` for each."""
        ...


class RewardServer(ThreadingHTTPServer):
    """Serves one scorer; bound when it is made, answering from `serve_forever` on.

    Args:
        address: host and port; port 0 takes a free one.
        token: what every request must carry.

    Attributes:
        scorer: what is served; given before `serve_forever`.

    Raises:
        OSError: the address is in use, or is none of this machine.
    """

    daemon_threads = True
    scorer: ScorerLike

    def __init__(self, address: tuple[str, int], model: str, token: str) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self.model, self.token = model, token
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="score")
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Take the address; the standard library's own would ask the network for a name that nobody needs."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def health(self) -> dict[str, Any]:
        """What it serves, and how much at a time."""
        return {
            "status": "ok",
            "protocol": SERVER_PROTOCOL,
            "model": self.model,
            "attributes": list(self.scorer.attributes),
            "max_conversations": MAX_CONVERSATIONS,
            "max_bytes": MAX_BYTES,
        }

    def scores(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """A score or an error for each item of a request."""
        read = [_conversation(item, place) for place, item in enumerate(items)]
        whole = [one for one in read if not isinstance(one, DataError)]
        scored = iter(self._worker.submit(score_each, self.scorer.score, whole).result())
        return [_as_json(one if isinstance(one, DataError) else next(scored)) for one in read]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a stack trace."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Let go of the address, once what is being scored is done."""
        super().server_close()
        self._worker.shutdown()


def _conversation(item: Any, place: int) -> Conversation | DataError:
    try:
        conversation = read_prompt(Row(f"conversation {place + 1}", {"messages": item}), "messages")
    except DataError as error:
        return error
    if not is_unicode(conversation):
        return DataError(f"conversation {place + 1}: a text is no Unicode", allowed="whole surrogate pairs")
    if isinstance(item, str) or not conversation or conversation[-1].role != "assistant":
        return DataError(
            f"conversation {place + 1} does not end with the assistant's message",
            allowed='[{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "..."}]',
        )
    return conversation


def _as_json(scored: Any) -> dict[str, Any]:
    if isinstance(scored, RlhfError):
        return {"error": scored.found + (f" Allowed: {scored.allowed}" if scored.allowed else "")}
    return {"reward": scored.reward, "attributes": dict(scored.attributes)}


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why
        super().__init__(why)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    server_version = "rlhf-serve-reward"
    sys_version = ""
    timeout = SLOW_CLIENT

    def do_GET(self) -> None:
        self._answer("/health", lambda _: self.server.health())

    def do_POST(self) -> None:
        self._answer("/score", lambda body: {"scores": self.server.scores(_items(body))})

    def _answer(self, path: str, reply: Callable[[bytes], dict[str, Any]]) -> None:
        told = self.headers.get("Content-Length", "0")
        length = int(told) if told.isdecimal() else 0
        unread = min(length, MAX_BYTES)
        try:
            self._check_token()
            if self.path != path:
                raise _RefusedError(
                    404, f"{self.command} {self.path} is not served; POST /score and GET /health are"
                )
            if not told.isdecimal() or "Transfer-Encoding" in self.headers:
                raise _RefusedError(411, "a body needs a Content-Length")
            if length > MAX_BYTES:
                raise _RefusedError(413, f"a body of {length} bytes; at most {MAX_BYTES} are taken")
            body, unread = self.rfile.read(length), 0
            status, content = 200, reply(body)
        except _RefusedError as refusal:
            status, content = refusal.status, {"error": refusal.why}
            self._pass_over(unread)
        except RuntimeError as error:  # torch's, such as a card that is full
            status, content = 500, {"error": f"the model failed: {str(error).splitlines()[0]}"}
        data = json.dumps(content, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(data)

    def _pass_over(self, length: int) -> None:
        """Let a client that is still sending hear the answer, instead of a broken connection."""
        while length > 0 and (some := self.rfile.read(min(length, 2**16))):
            length -= len(some)

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise _RefusedError(
                401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            )


def _items(body: bytes) -> list[Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "the body is not JSON") from None
    items = told.get("conversations") if isinstance(told, dict) else None
    if not isinstance(items, list):
        raise _RefusedError(400, 'the body is not {"conversations": [...]}')
    if len(items) > MAX_CONVERSATIONS:
        raise _RefusedError(
            413, f"{len(items)} conversations; at most {MAX_CONVERSATIONS} are taken at a time"
        )
    return items
