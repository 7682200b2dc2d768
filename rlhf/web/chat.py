"""The chat page: a policy beside its base, streamed, with rewards; a click keeps a pair of answers for
annotation."""

from __future__ import annotations

import dataclasses
import functools
import json
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from rlhf.core.errors import DataError, RlhfError
from rlhf.core.records import Conversation, Message
from rlhf.web import sessions
from rlhf.web.guard import add_files, add_guard

FILES = {
    "/": ("chat.html", "text/html"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/chat.css": ("chat.css", "text/css"),
}
LONGEST_TURN = 50_000


@dataclass(frozen=True)
class Answer:
    """A whole answer, and its reward and attributes where a reward model is loaded."""

    text: str
    finished: bool
    reward: float | None = None
    attributes: Mapping[str, float] | None = None


class Speaker(Protocol):
    """Who answers on the page."""

    @property
    def names(self) -> Sequence[str]:
        """The models that answer, the first being the policy."""

    def answer(
        self, name: str, conversation: Conversation, seed: int, on_text: Callable[[str], None]
    ) -> Answer:
        """The answer of one of them; `on_text` receives its pieces as they are sampled."""


class Turn(BaseModel):
    """A message on the page."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=LONGEST_TURN)


class Question(BaseModel):
    """A conversation that waits for an answer of each model."""

    messages: list[Turn] = Field(min_length=1, max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**31)


class AnswerPair(BaseModel):
    """Two answers to keep for annotation."""

    messages: list[Turn] = Field(min_length=1, max_length=200)
    first: str
    second: str


def signed_in(request: Request) -> None:
    """Let a request with a valid session pass.

    Raises:
        HTTPException: 401 otherwise.
    """
    secret: str = request.app.state.secret
    if sessions.name_of(request.cookies.get(request.app.state.cookie, ""), lambda _: secret) is None:
        raise HTTPException(401, "Sign in with the token that `rlhf chat` printed.")


def build_app(
    speaker: Speaker, token: str, keep: Callable[[Conversation, str, str], bool] | None = None
) -> FastAPI:
    """The application around a speaker.

    Args:
        token: opens a session.
        keep: keeps a pair of answers and returns whether it is new; None shows no such button.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.secret = secrets.token_hex(32)
    app.state.cookie = f"rlhf_chat_{secrets.token_hex(4)}"  # a browser shares cookies between ports of a host
    one_at_a_time = threading.Lock()  # a base switches its adapter by name
    add_guard(app)
    add_files(app, "rlhf.web", FILES)

    @app.post("/api/session")
    def sign_in(content: sessions.SignIn, response: Response) -> dict[str, Any]:
        if not secrets.compare_digest(content.token.strip().encode(), token.encode()):
            raise HTTPException(401, "This is not the token.")
        cookie = sessions.sign("chat", app.state.secret)
        response.set_cookie(app.state.cookie, cookie, httponly=True, samesite="strict")
        return _state()

    @app.get("/api/session", dependencies=[Depends(signed_in)])
    def session() -> dict[str, Any]:
        return _state()

    @app.post("/api/answer", dependencies=[Depends(signed_in)])
    def answer(question: Question) -> StreamingResponse:
        conversation = _conversation(question.messages)
        if conversation[-1].role != "user":
            raise HTTPException(422, "The last message must be the user's.")
        lines = _streamed(speaker, conversation, question.seed, one_at_a_time)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @app.post("/api/pairs", dependencies=[Depends(signed_in)])
    def keep_pair(pair: AnswerPair) -> dict[str, bool]:
        if keep is None:
            raise HTTPException(404, "Start `rlhf chat --web` with --store FILE to keep pairs.")
        try:
            return {"new": keep(_conversation(pair.messages), pair.first, pair.second)}
        except DataError as error:
            raise HTTPException(422, error.found) from None

    def _state() -> dict[str, Any]:
        return {"names": list(speaker.names), "keeps": keep is not None}

    return app


def _conversation(turns: Sequence[Turn]) -> Conversation:
    return tuple(Message(turn.role, turn.content) for turn in turns)


def _streamed(speaker: Speaker, conversation: Conversation, seed: int, lock: threading.Lock) -> Iterator[str]:
    """JSON lines: pieces of each answer as they come, then the whole of it."""
    lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def put_piece(name: str, text: str) -> None:
        lines.put({"name": name, "piece": text})

    def work() -> None:
        try:
            with lock:
                for name in speaker.names:
                    answer = speaker.answer(name, conversation, seed, functools.partial(put_piece, name))
                    lines.put({"name": name, **dataclasses.asdict(answer)})
        except RlhfError as error:
            lines.put({"error": str(error)})
        except Exception as error:  # noqa: BLE001 (the page must hear of it; the thread would end in silence)
            lines.put({"error": f"{type(error).__name__}: {error}"})
        finally:
            lines.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (line := lines.get()) is not None:
        yield json.dumps(line) + "\n"
