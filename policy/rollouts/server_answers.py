"""What a completion is asked with, and what its answer must hold: token ids and their log-probabilities, none missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy.rollouts.protocol import Sampling
from policy.rollouts.server_client import ServerError
from rlhf.core.errors import EngineError


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer, as a server gave it."""

    ids: list[int]
    logprobs: list[float]


def completion_request(
    prompt: Sequence[int], *, adapter: str, samples: int, seed: int, sampling: Sampling
) -> dict[str, Any]:
    """The body of one request.

    A server takes what a request leaves out from the model's generation_config.json, in which Llama-3.1 has a temperature of 0.6 and
    a top_p of 0.9: so everything that shapes the distribution is said.
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


def read_answers(answer: Mapping[str, Any], request: Mapping[str, Any], server: str) -> list[Answer]:
    """The answers of one completion, in their order.

    Raises:
        ServerError: the server gave up on one of them; another may finish it.
        EngineError: something is missing that no other try would bring.
    """
    choices = answer.get("choices") or []
    if len(choices) != request["n"]:
        raise EngineError(f"{server} returned {len(choices)} of {request['n']} answers to a prompt.")
    if answer.get("model") != request["model"]:
        raise EngineError(
            f"{server} answered with {answer.get('model')!r} in place of the adapter {request['model']!r}.",
            fix="use a stock vLLM server; is there a gateway before it that renames models?",
        )
    return [
        _answer(choice, request["max_tokens"], server)
        for choice in sorted(choices, key=lambda choice: int(choice["index"]))
    ]


def _answer(choice: Mapping[str, Any], longest: int, server: str) -> Answer:
    why = choice.get("finish_reason")
    if why not in ("stop", "length"):  # `abort`, when a server shuts down
        raise ServerError(f"it ended an answer early ({why})")
    ids, told = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or told is None:
        missing = "token ids" if ids is None else "log-probabilities"
        raise EngineError(
            f"{server} returned no {missing}.",
            allowed="vLLM 0.31, which knows return_token_ids and logprobs",
            fix="update it",
        )
    if not ids:
        raise EngineError(f"{server} returned an answer without a token.")
    if len(told) != len(ids) or None in told:
        raise EngineError(f"{server} returned {len(told)} log-probabilities for {len(ids)} tokens.")
    if why == "length" and len(ids) != longest:
        raise EngineError(
            f"{server} cut an answer at {len(ids)} tokens.",
            allowed=f"rollouts.max_new_tokens = {longest}",
            fix="start it without max_new_tokens in --override-generation-config",
        )
    return Answer(ids, told)
