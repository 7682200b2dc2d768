"""Serve a reward model over HTTP: `POST /score` and `GET /health`, in JSON, with a bearer token.

    POST /score {"conversations": [[{"role": "user", "content": "..."}, {"role": "assistant", "content":
      "..."}], ...]} -> {"scores": [{"reward": x, "attributes": {...}} or {"error": "..."}, ...]}
    GET /health -> {"status": "ok", "protocol": 1, "model": ..., "attributes": [...], "max_conversations":
    ..., "max_bytes": ...}

Every other answer is {"error": "..."} with status 400, 401, 404, 405, 408, 413 or 500. Requests that wait at
the same time are scored in one packed batch. There is no encryption: for access from other machines, put a
proxy or a tunnel in front.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from reward.scorer import score_each
from rlhf.config.rewards import SERVER_PROTOCOL
from rlhf.core.errors import DataError, RlhfError
from rlhf.core.records import Conversation, is_unicode
from rlhf.data.readers.messages import read_prompt
from rlhf.data.sources.rows import Row

MAX_BYTES = 16 * 2**20
MAX_CONVERSATIONS = 256
"""Of one request. A batch holds whole requests, and no second one beyond this many conversations."""
READ_SECONDS = 30.0
"""Maximum silence of a client that is sending a request body."""
ENDPOINTS = "POST /score and GET /health"


class ScorerLike(Protocol):
    """A reward model that scores conversations."""

    @property
    def attributes(self) -> Sequence[str]:
        """Names of the attributes of a score."""
        ...

    def score(self, conversations: Sequence[Conversation]) -> Sequence[Any]:
        """One score with `reward` and `attributes` per conversation."""
        ...


class BatchQueue:
    """Scores the conversations of all waiting requests in one batch, in order of arrival, in one thread."""

    def __init__(self, scorer: ScorerLike) -> None:
        self.scorer = scorer
        self._requests: asyncio.Queue[tuple[Sequence[Conversation], asyncio.Future[Any]]] = asyncio.Queue()

    def __len__(self) -> int:
        """How many requests wait."""
        return self._requests.qsize()

    async def score(self, conversations: Sequence[Conversation]) -> list[Any]:
        """One score, or one error, per conversation.

        Raises:
            RuntimeError: the model failed, for example out of memory.
        """
        scores: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((conversations, scores))
        return await scores

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        postponed: list[tuple[Sequence[Conversation], asyncio.Future[Any]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="score") as thread:
            while True:
                batch = postponed or [await self._requests.get()]
                postponed, size = [], len(batch[0][0])
                while not postponed and not self._requests.empty():
                    request = self._requests.get_nowait()
                    size += len(request[0])
                    (batch if size <= MAX_CONVERSATIONS else postponed).append(request)
                together = [conversation for conversations, _ in batch for conversation in conversations]
                call = loop.run_in_executor(thread, score_each, self.scorer.score, together)
                await asyncio.wait({call})
                if (error := call.exception()) is not None:
                    for _, waiting in batch:
                        waiting.set_exception(error)
                else:
                    scores = iter(call.result())
                    for conversations, waiting in batch:
                        waiting.set_result([next(scores) for _ in conversations])


class RequireToken:
    """ASGI middleware: answers 401 to every request without the bearer token, whatever its path."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(header, self._expected):
                message = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
                response = _json({"error": message}, 401, {"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def create_app(scorer: ScorerLike, *, model: str, token: str) -> FastAPI:
    """The application that serves a scorer.

    Args:
        model: the name that `/health` reports.
        token: the bearer token that every request must carry.
    """
    queue = BatchQueue(scorer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.queue = queue
    app.add_middleware(RequireToken, token=token)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, lambda *_: Response(status_code=400))
    app.add_exception_handler(Exception, _server_error)

    @app.get("/health")
    async def health() -> Response:
        return _json(
            {
                "status": "ok",
                "protocol": SERVER_PROTOCOL,
                "model": model,
                "attributes": list(queue.scorer.attributes),
                "max_conversations": MAX_CONVERSATIONS,
                "max_bytes": MAX_BYTES,
            }
        )

    @app.post("/score")
    async def score(request: Request) -> Response:
        items = [_conversation(item, place) for place, item in enumerate(_items(await _body(request)))]
        valid = [item for item in items if not isinstance(item, DataError)]
        try:
            scores = iter(await queue.score(valid)) if valid else iter(())
        except RuntimeError as error:  # torch's, such as a GPU out of memory
            raise HTTPException(500, f"the model failed: {str(error).splitlines()[0]}") from error
        results = [item if isinstance(item, DataError) else next(scores) for item in items]
        return _json({"scores": [_as_dict(result) for result in results]})

    return app


async def _body(request: Request) -> bytes:
    """The body of a request, read no further than the limit."""
    length = request.headers.get("Content-Length", "0")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise HTTPException(413, f"a body of {length} bytes; at most {MAX_BYTES} are accepted")
    body, chunks = bytearray(), request.stream()
    try:
        while True:
            body += await asyncio.wait_for(anext(chunks), READ_SECONDS)
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"a body of more than {MAX_BYTES} bytes, the limit")
    except StopAsyncIteration:
        return bytes(body)
    except TimeoutError:
        raise HTTPException(
            408,
            f"the rest of the body did not arrive within {READ_SECONDS:g} seconds",
            {"Connection": "close"},
        ) from None


def _items(body: bytes) -> list[Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    items = content.get("conversations") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise HTTPException(400, 'the body is not {"conversations": [...]}')
    if len(items) > MAX_CONVERSATIONS:
        raise HTTPException(
            413, f"{len(items)} conversations; at most {MAX_CONVERSATIONS} are accepted at a time"
        )
    return items


def _conversation(item: Any, place: int) -> Conversation | DataError:
    try:
        conversation = read_prompt(Row(f"conversation {place + 1}", {"messages": item}), "messages")
    except DataError as error:
        return error
    if not is_unicode(conversation):
        return DataError(
            f"conversation {place + 1}: a text is not valid Unicode", allowed="whole surrogate pairs"
        )
    if isinstance(item, str) or not conversation or conversation[-1].role != "assistant":
        return DataError(
            f"conversation {place + 1} does not end with the assistant's message",
            allowed='[{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "..."}]',
        )
    return conversation


def _as_dict(result: Any) -> dict[str, Any]:
    if isinstance(result, RlhfError):
        return {"error": result.found + (f" Allowed: {result.allowed}" if result.allowed else "")}
    return {"reward": result.reward, "attributes": dict(result.attributes)}


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    message = error.detail
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path} is not served; {ENDPOINTS} are"
    return _json({"error": message}, error.status_code, error.headers)


def _server_error(_: Request, error: Exception) -> Response:
    return _json({"error": f"the server failed: {type(error).__name__}"}, 500)


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    """JSON in ASCII: an error may quote text that UTF-8 cannot encode."""
    data = json.dumps(content, allow_nan=False)
    return Response(data, status, headers, media_type="application/json")
