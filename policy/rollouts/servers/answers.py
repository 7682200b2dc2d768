"""Requests and responses of vLLM's completions endpoint: token ids with a log-probability each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy.rollouts.protocol import Sampling
from policy.rollouts.servers.client import ServerError
from rlhf.core.errors import EngineError


@dataclass(frozen=True, slots=True)
class SampledIds:
    """Token ids of one sampled answer with their log-probabilities."""

    ids: list[int]
    logprobs: list[float]


def completion_request(
    prompt: Sequence[int], *, adapter: str, samples: int, seed: int, sampling: Sampling
) -> dict[str, Any]:
    """The JSON body of a request for `samples` answers to one prompt.

    It sets every parameter of the distribution: vLLM takes missing ones from the model's
    generation_config.json, where Llama-3.1 has the temperature 0.6 and a top_p of 0.9.
    """
    return {
        "model": adapter,
        "prompt": list(prompt),
        "n": samples,
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(sampling.stop_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def read_response(response: Mapping[str, Any], request: Mapping[str, Any], server: str) -> list[SampledIds]:
    """The sampled answers of a response, in order.

    Raises:
        ServerError: the server aborted an answer; another server may finish it.
        EngineError: the response lacks something that a retry would lack too.
    """
    choices = response.get("choices") or []
    if len(choices) != request["n"]:
        raise EngineError(f"{server} returned {len(choices)} of {request['n']} answers to a prompt.")
    if response.get("model") != request["model"]:
        raise EngineError(
            f"{server} answered with {response.get('model')!r} in place of the adapter {request['model']!r}.",
            fix="use a stock vLLM server, without a gateway that renames models",
        )
    return [
        _answer(choice, request["max_tokens"], server)
        for choice in sorted(choices, key=lambda choice: int(choice["index"]))
    ]


def _answer(choice: Mapping[str, Any], longest: int, server: str) -> SampledIds:
    finish_reason = choice.get("finish_reason")
    if finish_reason not in ("stop", "length"):  # `abort`, when a server shuts down
        raise ServerError(f"it aborted an answer (finish_reason {finish_reason})")
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logprobs is None:
        missing = "token ids" if ids is None else "log-probabilities"
        raise EngineError(
            f"{server} returned no {missing}.",
            allowed="a vLLM server with return_token_ids and logprobs (0.31)",
            fix="update the server to vLLM 0.31",
        )
    if not ids:
        raise EngineError(f"{server} returned an answer without a token.")
    if len(logprobs) != len(ids) or None in logprobs:
        raise EngineError(f"{server} returned {len(logprobs)} log-probabilities for {len(ids)} tokens.")
    if finish_reason == "length" and len(ids) != longest:
        raise EngineError(
            f"{server} cut an answer at {len(ids)} tokens.",
            allowed=f"rollouts.max_new_tokens = {longest}",
            fix="start the server without max_new_tokens in --override-generation-config",
        )
    return SampledIds(ids, logprobs)
