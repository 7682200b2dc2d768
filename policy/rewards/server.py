"""Rewards by a server: the other end of `rlhf serve-reward`.

A request that gets no answer, or one that says try again, is repeated after 1, 2, 4 and 8 seconds. A wrong token is never
repeated. The token goes to the address that the config names and nowhere else: redirections are not followed.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from policy.rewards.model import conversations_of
from policy.rewards.protocol import Missing
from rlhf.config.rewards import SERVER_PROTOCOL
from rlhf.core.errors import ConfigError, RewardError, RlhfError
from rlhf.core.records import Conversation, Prompt, Rollout

CHUNK = 64
"""Conversations in one request."""
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""
TRY_AGAIN = (408, 429, 500, 502, 503, 504)


class ServerReward:
    """Asks a reward server.

    Args:
        url: where it is.
        token_env: the environment variable with its token.
        timeout: seconds for one request.
    """

    def __init__(self, url: str, *, token_env: str, timeout: float) -> None:
        self.url, self.token_env, self.timeout = url.rstrip("/"), token_env, timeout
        proxies: dict[str, str] | None = {} if _is_here(self.url) else None  # this machine is behind no proxy
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirect)

    def check(self) -> None:
        """Ask whether it is there, takes the token, and speaks as we do.

        Raises:
            ConfigError: it is not, or does not.
        """
        said = self._ask("/health", None, waits=(), error_type=ConfigError)
        if said.get("protocol") != SERVER_PROTOCOL:
            raise ConfigError(
                f"{self.url} answers, but is no reward server of this version (protocol {said.get('protocol')}).",
                allowed=f"an address of `rlhf serve-reward`, protocol {SERVER_PROTOCOL}",
            )

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """What the server says of each answer.

        Raises:
            RewardError: it does not answer, or not with a score for each.
            ConfigError: it does not take the token.
        """
        conversations = conversations_of(prompts, rollouts)
        rewards: list[float | Missing] = []
        for start in range(0, len(conversations), CHUNK):
            rewards += self._scores(conversations[start : start + CHUNK])
        return rewards

    def _scores(self, conversations: Sequence[Conversation]) -> list[float | Missing]:
        messages = [[{"role": m.role, "content": m.content} for m in one] for one in conversations]
        scores = self._ask("/score", {"conversations": messages}).get("scores")
        if not isinstance(scores, list) or len(scores) != len(conversations):
            count = len(scores) if isinstance(scores, list) else "no"
            raise RewardError(
                f"The reward server at {self.url} sent {count} scores for {len(conversations)} conversations.",
                allowed='{"scores": [{"reward": x} or {"error": "..."}, ...]}, one for each',
            )
        return [_reward(score) for score in scores]

    def _ask(
        self,
        path: str,
        content: Mapping[str, Any] | None,
        *,
        waits: Sequence[float] = WAITS,
        error_type: type[RlhfError] = RewardError,
    ) -> Mapping[str, Any]:
        """A GET, or with content a POST, repeated where that may help."""
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)  # noqa: S310 - http by the config's rule
        reason = ""
        for wait in (*waits, None):
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    said = json.load(response)
                if isinstance(said, dict):
                    return said
                reason = "it sent JSON that is no object"
            except urllib.error.HTTPError as error:
                reason = f"it said {error.code}: {_told(error)}"
                if error.code in (401, 403):
                    raise self._wrong_token(error.code) from error
                if error.code not in TRY_AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if wait is not None:
                time.sleep(wait)
        raise error_type(
            f"The reward server at {self.url} gave no answer to {path}: {reason}",
            allowed=f"a running `rlhf serve-reward`, an answer within {self.timeout:g} seconds",
            fix="start it there (rlhf serve-reward MODEL), then --resume a run that was under way; one that had not begun may have another address",
        )

    def _token(self) -> str:
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ConfigError(
                f"The environment variable {self.token_env} is not set: it holds the token of the reward server at {self.url}.",
                fix=f"export {self.token_env}=TOKEN, with the token that `rlhf serve-reward` was given or printed",
            )
        return token

    def _wrong_token(self, code: int) -> ConfigError:
        return ConfigError(
            f"The reward server at {self.url} does not take the token in {self.token_env} ({code}).",
            fix=f"export {self.token_env}=TOKEN, with the token that `rlhf serve-reward` was given or printed",
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: the token is for one address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _told(error: urllib.error.HTTPError) -> str:
    """What a refusal says, of the server or of something between."""
    text = error.read(2000).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or str(error.reason)


def _reward(score: Any) -> float | Missing:
    if isinstance(score, Mapping) and "error" in score:
        return Missing(str(score["error"]))
    reward = score.get("reward") if isinstance(score, Mapping) else None
    is_number = isinstance(reward, int | float) and not isinstance(reward, bool) and math.isfinite(reward)
    return float(reward) if is_number else Missing(f"the server sent {score!r:.80}")  # type: ignore[arg-type]
