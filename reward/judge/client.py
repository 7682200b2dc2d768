"""Requests to an OpenAI-compatible chat server: concurrent, retried, and cached by content.

The token goes to the address in the config and nowhere else: redirects are not followed, and on this machine
no proxy is used. It is in no message, log or cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rlhf.config.judge import JudgeConfig
from rlhf.core.errors import ConfigError, RewardError, did_you_mean, excerpt
from rlhf.core.hosts import is_loopback

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes after which a request is sent again."""
CONTEXT_EXCEEDED = re.compile(
    r"context.{0,3}(length|size|window)|maximum (model|sequence|input) length|too long", re.IGNORECASE
)
"""In the message of a status 400 or 413: the request is too long for the model, as vLLM, SGLang, llama.cpp
and hosted servers write it."""
LONGEST_WAIT = 60.0
"""Seconds; the most that a server's `Retry-After` is obeyed."""


@dataclass(frozen=True)
class Completion:
    """The text of the server, with its tokens and time; with `too_long` its refusal of so long a request."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached: bool = False
    too_long: bool = False


class JudgeClient:
    """Sends user turns to the judge's server.

    Args:
        cache: a JSON Lines file of completions by a hash of the request; None keeps them in memory only. A
            line that a killed run left unfinished is removed.
    """

    def __init__(self, config: JudgeConfig, cache: Path | None = None) -> None:
        self.config, self.cache = config, cache
        self._known: dict[str, str] = {} if cache is None else _read_cache(cache)
        local = is_loopback(config.url)
        self._http = httpx.Client(
            base_url=config.url.rstrip("/"),
            timeout=config.timeout,
            trust_env=not local,
            limits=httpx.Limits(max_connections=config.concurrency),
        )

    def complete(self, requests: Sequence[str]) -> list[Completion]:
        """One completion for each user turn, in their order; equal turns are sent once.

        A refusal of a request that is too long is not cached: the server may get a longer context. Where a
        request fails, the completions of others that have arrived are.

        Raises:
            RewardError: the server gave no completion for a request after all retries.
            ConfigError: the server refuses the token, or does not know the model.
        """
        keys = [self._key(request) for request in requests]
        missing = {
            key: request for key, request in zip(keys, requests, strict=True) if key not in self._known
        }
        fresh: dict[str, Completion] = {}
        with ThreadPoolExecutor(max_workers=self.config.concurrency) as pool:
            pending = {key: pool.submit(self._send, request) for key, request in missing.items()}
            try:
                for key, future in pending.items():
                    fresh[key] = future.result()
            finally:
                for future in pending.values():
                    future.cancel()
                pool.shutdown()
                arrived = [
                    (key, future.result())
                    for key, future in pending.items()
                    if not future.cancelled() and future.exception() is None
                ]
                self._remember({key: entry.text for key, entry in arrived if not entry.too_long})
        seen = set[str]()
        completions = []
        for key in keys:
            new = key in fresh and (key not in seen or fresh[key].too_long)
            completions.append(fresh[key] if new else Completion(self._known[key], cached=True))
            seen.add(key)
        return completions

    def check(self) -> None:
        """Make sure that the server is there, accepts the token and serves the model.

        A server without a list of its models gets a short request.

        Raises:
            ConfigError: it does not.
            RewardError: the short request fails.
        """
        config = self.config
        try:
            response = self._http.get("/v1/models", headers=self._headers())
        except httpx.HTTPError as error:
            raise ConfigError(
                f"No judge answers at {config.url}: {type(error).__name__} {error}",
                allowed="a running OpenAI-compatible server",
                fix=f"start it (vllm serve {config.model}), or correct judge.url",
            ) from error
        if response.status_code in (404, 405):
            self._send("Reply with the word yes.")
            return
        self._raise_if_final(response)
        try:
            served = [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            return  # a list of another form, or a busy server; the first request will tell
        if served and config.model not in served:
            raise ConfigError(
                f"The judge at {config.url} does not serve "
                f"{config.model!r}.{did_you_mean(config.model, served)}",
                allowed=", ".join(served[:10]),
                fix=f"judge.model={served[0]}",
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _body(self, request: str) -> dict[str, Any]:
        config = self.config
        return {
            "model": config.model,
            "messages": [{"role": "user", "content": request}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            **config.extra_body,
        }

    def _key(self, request: str) -> str:
        content = json.dumps([self.config.url, self._body(request)], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _remember(self, texts: Mapping[str, str]) -> None:
        self._known.update(texts)
        if self.cache is not None and texts:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"key": key, "text": text}) + "\n" for key, text in texts.items())

    def _send(self, request: str) -> Completion:
        started, reason = time.perf_counter(), ""
        for attempt in range(self.config.retries + 1):
            wait = float(2**attempt)
            try:
                response = self._http.post(
                    "/v1/chat/completions",
                    content=json.dumps(self._body(request)).encode(),  # ASCII: any text can be sent
                    headers={"Content-Type": "application/json", **self._headers()},
                )
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code == httpx.codes.OK:
                    completion = _read(response, time.perf_counter() - started)
                    if completion is not None:
                        return completion
                if response.status_code in (400, 413) and CONTEXT_EXCEEDED.search(response.text):
                    return Completion(response.text, too_long=True)
                self._raise_if_final(response)
                reason = f"status {response.status_code}: {excerpt(response.text)}"
                wait = _retry_after(response, wait)
            if attempt < self.config.retries:
                time.sleep(wait)
        raise RewardError(
            f"The judge at {self.config.url} gave no completion in {self.config.retries + 1} attempts; "
            f"the last one ended with {reason}",
            allowed="a running OpenAI-compatible server that answers with choices[0].message.content within "
            f"judge.timeout = {self.config.timeout:g} s",
            fix="look at the server's log, then repeat the command (a run: with --resume); a slow judge "
            "needs a longer judge.timeout or a lower judge.concurrency",
        )

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self.config.token_env, "")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _raise_if_final(self, response: httpx.Response) -> None:
        code, config = response.status_code, self.config
        if code in (401, 403):
            raise ConfigError(
                f"The judge at {config.url} refuses the token in ${config.token_env} (status {code}).",
                fix=f"export {config.token_env}=TOKEN with a token that the server accepts",
            )
        if code not in (httpx.codes.OK, *RETRIED):
            raise ConfigError(
                f"The judge at {config.url} refuses the request (status {code}): {response.text[:300]}",
                allowed="an OpenAI-compatible server with POST /v1/chat/completions that serves judge.model",
                fix="check judge.url, and that the server has the model: curl "
                f"{config.url.rstrip('/')}/v1/models",
            )


def _read(response: httpx.Response, seconds: float) -> Completion | None:
    """The completion in a response; None if it is not the JSON of OpenAI's chat completions."""
    try:
        content = response.json()
        text = content["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if text is None:  # only reasoning was written, up to judge.max_tokens: a text without a verdict
        text = ""
    if not isinstance(text, str):
        return None
    usage = content.get("usage")
    prompt, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return Completion(text, prompt, written, seconds)


def _count(usage: Any, name: str) -> int:
    """A count of tokens; 0 where the server reports none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds to wait before the next attempt."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return otherwise
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else otherwise


def _read_cache(file: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    if not file.exists():
        return known
    with file.open("r+b") as lines:
        whole = 0
        for line in lines:
            if not line.endswith(b"\n"):
                lines.truncate(whole)  # or the next completion would be appended to it, and be lost too
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                known[str(entry["key"])] = str(entry["text"])
            except (ValueError, KeyError, TypeError):
                continue
    return known
