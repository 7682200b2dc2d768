"""Rewards by a server: the client of `rlhf serve-reward`.

A request without an answer, or with an answer that names a temporary fault, is repeated after 1, 2, 4 and 8
seconds. A wrong token is never retried. The token is sent to the configured address only: redirects are not
followed.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from policy.rewards.model import conversations_of
from policy.rewards.protocol import Missing
from rlhf.config.rewards import SERVER_PROTOCOL, is_header_safe
from rlhf.core.errors import ConfigError, RewardError, RlhfError, excerpt
from rlhf.core.hosts import is_loopback
from rlhf.core.records import Conversation, Prompt, Rollout
from rlhf.data.sources.rows import is_number

CHUNK = 64
"""Conversations in one request."""
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each retry."""
TEMPORARY = (408, 429, 500, 502, 503, 504)
"""Status codes that are retried."""
MAX_MESSAGE = 200


class ServerReward:
    """The rewards of a reward server.

    Args:
        url: the server's address.
        token_env: the environment variable that holds its token.
        timeout: seconds for one request.
    """

    def __init__(self, url: str, *, token_env: str, timeout: float) -> None:
        self.url, self.token_env, self.timeout = url.rstrip("/"), token_env, timeout
        # A proxy named in the environment cannot reach this machine's loopback address.
        self._http = httpx.Client(
            timeout=timeout, follow_redirects=False, trust_env=not is_loopback(self.url)
        )
        weakref.finalize(self, self._http.close)

    def check(self) -> None:
        """Check that the server is reachable, accepts the token and has this protocol version.

        Raises:
            ConfigError: it is not, or does not.
        """
        health = self._request("GET", "/health", retry_delays=(), error_type=ConfigError)
        if health.get("protocol") != SERVER_PROTOCOL:
            raise ConfigError(
                f"{self.url} answers, but is not a reward server of this version (protocol "
                f"{health.get('protocol')}).",
                allowed=f"an address of `rlhf serve-reward`, protocol {SERVER_PROTOCOL}",
            )

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The reward of each answer, or why it has none.

        Raises:
            RewardError: the server does not answer, or not with one score per answer.
            ConfigError: it does not accept the token.
        """
        conversations = conversations_of(prompts, rollouts)
        rewards: list[float | Missing] = []
        for start in range(0, len(conversations), CHUNK):
            rewards += self._scores(conversations[start : start + CHUNK])
        return rewards

    def _scores(self, conversations: Sequence[Conversation]) -> list[float | Missing]:
        messages = [[message.as_dict() for message in conversation] for conversation in conversations]
        scores = self._request("POST", "/score", {"conversations": messages}).get("scores")
        if not isinstance(scores, list) or len(scores) != len(conversations):
            count = len(scores) if isinstance(scores, list) else "no"
            raise RewardError(
                f"The reward server at {self.url} sent {count} scores for {len(conversations)} "
                "conversations.",
                allowed='{"scores": [{"reward": x} or {"error": "..."}, ...]}, one for each',
            )
        return [_reward(score) for score in scores]

    def _request(
        self,
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        retry_delays: Sequence[float] | None = None,
        error_type: type[RlhfError] = RewardError,
    ) -> Mapping[str, Any]:
        """The JSON object that the server answers with; temporary faults are retried."""
        body = None if content is None else json.dumps(content).encode()  # ASCII: any text can be sent
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        reason = ""
        for delay in (*(RETRY_DELAYS if retry_delays is None else retry_delays), None):
            try:
                response = self._http.request(method, self.url + path, content=body, headers=headers)
            except httpx.TimeoutException:
                reason = f"no answer within {self.timeout:g} seconds"
            except httpx.RequestError as error:  # no connection, or an answer that cannot be decoded
                reason = str(error) or type(error).__name__
            else:
                if response.status_code in (401, 403):
                    raise self._wrong_token(response.status_code)
                reason = f"status {response.status_code}: {_error_message(response)}"
                if response.is_success:
                    if (result := _json_object(response)) is not None:
                        return result
                    reason = "the answer is not a JSON object"
                elif response.status_code not in TEMPORARY:
                    break
            if delay is not None:
                time.sleep(delay)
        raise error_type(
            f"The reward server at {self.url} gave no answer to {path}: {reason}",
            allowed=f"a running `rlhf serve-reward`, an answer within {self.timeout:g} seconds",
            fix="start it there (rlhf serve-reward MODEL); continue an interrupted run with --resume, or "
            "name another address in a new run",
        )

    def _token(self) -> str:
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ConfigError(
                f"The environment variable {self.token_env} is not set: it holds the token of the reward "
                f"server at {self.url}.",
                fix=self._token_fix(),
            )
        if not is_header_safe(token):
            raise ConfigError(
                f"The token in {self.token_env} cannot be sent in a header.",
                allowed="letters, digits and signs in ASCII, without spaces or line ends",
                fix=self._token_fix(),
            )
        return token

    def _wrong_token(self, status: int) -> ConfigError:
        return ConfigError(
            f"The reward server at {self.url} does not accept the token in {self.token_env} (status "
            f"{status}).",
            fix=self._token_fix(),
        )

    def _token_fix(self) -> str:
        return f"export {self.token_env}=TOKEN, with the token that `rlhf serve-reward` uses or printed"


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _error_message(response: httpx.Response) -> str:
    """The `error` field of an answer; else its text, cut, or its reason phrase."""
    content = _json_object(response) or {}
    return str(content.get("error") or response.text.strip()[:MAX_MESSAGE] or response.reason_phrase)


def _reward(score: Any) -> float | Missing:
    if isinstance(score, Mapping) and "error" in score:
        return Missing(str(score["error"]), "see the output of the reward server")
    reward = score.get("reward") if isinstance(score, Mapping) else None
    if is_number(reward):
        return float(reward)  # type: ignore[arg-type]
    return Missing(
        f"the server sent {excerpt(score, reward)} in place of a score",
        'send {"reward": NUMBER} for each conversation, as `rlhf serve-reward` does',
    )
