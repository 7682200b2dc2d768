"""One stock vLLM server, asked over HTTP.

What is asked and answered: vLLM 0.31, `vllm/entrypoints/openai/completion/protocol.py`, `.../models/serving.py` and
`vllm/entrypoints/serve/lora/`.
"""

from __future__ import annotations

import json
import socket
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

CONNECT_SECONDS = 5.0
SHORT_SECONDS = 30.0
"""For questions that need no sampling."""
LOAD_SECONDS = 300.0
"""For an adapter, which may come from a slow folder."""
IDLE_SECONDS = 2.0
"""vLLM's server closes a connection that was idle for 5 seconds; ours go first."""


class ServerError(Exception):
    """A server did not do what it was asked.

    Args:
        message: what it said, or what became of the connection.
        status: of the answer; None where there was none.
        timed_out: it took the request and did not answer in time.
    """

    def __init__(self, message: str, status: int | None = None, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.status, self.timed_out = status, timed_out

    @property
    def may_pass(self) -> bool:
        """Whether another try, or another server, may do better: the request is not at fault."""
        return self.status is None or self.status == 429 or self.status >= 500


class Server:
    """A server's address, and what is known of it.

    Attributes:
        adapter: the name of the adapter it was last given.
        lost: why it is not used now; None while it is.
        in_flight: prompts it is answering.
        losses: how often it was lost.
    """

    def __init__(self, url: str, *, token: str | None, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self.adapter: str | None = None
        self.lost: str | None = None
        self.in_flight = self.losses = 0
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=httpx.HTTPTransport(
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS
                ),
                socket_options=_notice_dead_machines(),
            ),
            trust_env=False,  # no proxy, and no password out of a netrc file
        )
        weakref.finalize(self, self._http.close)

    def models(self) -> list[Mapping[str, Any]]:
        """The base and the adapters it serves, the base first."""
        answer = self._json("GET", "/v1/models", None, SHORT_SECONDS)
        served = answer.get("data")
        if not isinstance(served, list) or not served:
            raise ServerError("it lists no models: it is no OpenAI server", 200)
        return served

    def knows(self, adapter: str) -> bool:
        """Whether it has an adapter of this name."""
        return any(model.get("id") == adapter for model in self.models())

    def load(self, name: str, folder: Path) -> None:
        """Give it an adapter out of a folder that it sees under the same path."""
        try:
            self._ask(
                "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_SECONDS
            )
        except ServerError as problem:
            # It has it already: the same name is the same weights.
            if problem.status != 400 or not self.knows(name):
                raise
        self.adapter = name

    def unload(self, name: str) -> None:
        """Let it forget an adapter; one that it does not know is forgotten."""
        try:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, SHORT_SECONDS)
        except ServerError as problem:
            if problem.status != 404:
                raise

    def complete(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answers to one prompt."""
        return self._json("POST", "/v1/completions", request, self.timeout)

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> Mapping[str, Any]:
        text = self._ask(method, path, body, seconds)
        try:
            answer = json.loads(text)
        except ValueError:
            raise ServerError(f"{path} gave no JSON, but {_short(text)!r}", 200) from None
        if not isinstance(answer, dict):
            raise ServerError(f"{path} gave {_short(text)!r}", 200)
        return answer

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> str:
        limits = httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
        try:
            answer = self._http.request(method, path, json=body, timeout=limits)
        except httpx.ConnectTimeout:
            raise ServerError(f"no connection within {CONNECT_SECONDS:g} s") from None
        except httpx.TimeoutException:
            raise ServerError(f"no answer within {seconds:g} s", timed_out=True) from None
        except httpx.TransportError as error:
            raise ServerError(str(error).rstrip(".") or type(error).__name__) from None
        if not answer.is_success:
            raise ServerError(f"{answer.status_code}: {_message(answer.text)}", answer.status_code)
        return answer.text


def _message(text: str) -> str:
    """What an answer that is an error says: vLLM's `error.message`, its bare `error`, or FastAPI's `detail`."""
    try:
        told = json.loads(text)
    except ValueError:
        return _short(text)
    if not isinstance(told, dict):
        return _short(text)
    said = told.get("error", told.get("detail", text))
    return _short(str(said.get("message", said) if isinstance(said, dict) else said))


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 300 else plain[:300] + " …"


def _notice_dead_machines() -> list[tuple[int, int, int]]:
    """A machine without power closes no connection: the kernel asks after a minute of silence, and gives up after another."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        ]
    return options
