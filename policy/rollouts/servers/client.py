"""HTTP client of one stock vLLM server.

Endpoints: vLLM 0.31, `vllm/entrypoints/openai/completion/protocol.py`, `.../models/serving.py` and
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
"""Time-out of requests without sampling."""
LOAD_SECONDS = 300.0
"""Time-out of loading an adapter, which may be on a slow disk."""
IDLE_SECONDS = 2.0
"""Idle connections are closed after this; vLLM's server closes them after 5 seconds."""


class ServerError(Exception):
    """A request to a server failed.

    Args:
        message: the server's message, or the connection's error.
        status: of the response; None where there was none.
        timed_out: the server accepted the request and did not answer in time.
    """

    def __init__(self, message: str, status: int | None = None, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.status, self.timed_out = status, timed_out

    @property
    def is_temporary(self) -> bool:
        """Whether a retry, or another server, may succeed: the request itself is valid."""
        return self.status is None or self.status == 429 or self.status >= 500


class Server:
    """A server and its state.

    Attributes:
        adapter: name of the adapter it loaded last.
        lost: why it is not in use; None while it is.
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
                socket_options=_keepalive_options(),
            ),
            trust_env=False,  # no proxy and no credentials of a netrc file
        )
        weakref.finalize(self, self._http.close)

    def models(self) -> list[Mapping[str, Any]]:
        """The served base and adapters, the base first."""
        response = self._json("GET", "/v1/models", None, SHORT_SECONDS)
        served = response.get("data")
        if not isinstance(served, list) or not served:
            raise ServerError("it lists no models: it is not an OpenAI server", 200)
        return served

    def has_adapter(self, adapter: str) -> bool:
        """Whether the server has an adapter of this name."""
        return any(model.get("id") == adapter for model in self.models())

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter from a folder that the server sees under the same path."""
        try:
            self._request(
                "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_SECONDS
            )
        except ServerError as problem:
            # Loaded already: the name is a hash of the weights.
            if problem.status != 400 or not self.has_adapter(name):
                raise
        self.adapter = name

    def unload(self, name: str) -> None:
        """Unload an adapter; an unknown one counts as unloaded."""
        try:
            self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name}, SHORT_SECONDS)
        except ServerError as problem:
            if problem.status != 404:
                raise

    def complete(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The response to a completion request."""
        return self._json("POST", "/v1/completions", request, self.timeout)

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> Mapping[str, Any]:
        text = self._request(method, path, body, seconds)
        try:
            response = json.loads(text)
        except (ValueError, RecursionError):
            raise ServerError(f"{path} returned no JSON, but {_short(text)!r}", 200) from None
        if not isinstance(response, dict):
            raise ServerError(f"{path} returned {_short(text)!r}", 200)
        return response

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> str:
        limits = httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
        try:
            response = self._http.request(method, path, json=body, timeout=limits)
        except httpx.ConnectTimeout:
            raise ServerError(f"no connection within {CONNECT_SECONDS:g} s") from None
        except httpx.TimeoutException:
            raise ServerError(f"no answer within {seconds:g} s", timed_out=True) from None
        except httpx.RequestError as error:  # no connection, or an answer that cannot be decoded
            raise ServerError(str(error).rstrip(".") or type(error).__name__) from None
        if not response.is_success:
            raise ServerError(f"{response.status_code}: {_message(response.text)}", response.status_code)
        return response.text


def _message(text: str) -> str:
    """The message of an error response: vLLM's `error.message` or `error`, or FastAPI's `detail`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return _short(text)
    if not isinstance(content, dict):
        return _short(text)
    error = content.get("error", content.get("detail", text))
    return _short(str(error.get("message", error) if isinstance(error, dict) else error))


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 300 else plain[:300] + " …"


def _keepalive_options() -> list[tuple[int, int, int]]:
    """TCP keepalive, which notices a machine that lost power: probes after one minute of silence, failure
    after another."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        ]
    return options
