"""Checks of a server before the first rollout: base, context length and kind of log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from policy.rollouts.protocol import Sampling
from policy.rollouts.servers.client import Server, ServerError
from policy.rollouts.vllm.arguments import max_lora_rank
from rlhf.core.errors import ModelError

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model {base} "
    "--enable-lora --max-lora-rank {rank} --max-model-len {length}"
)


@dataclass(frozen=True)
class Wanted:
    """Requirements on every server.

    Attributes:
        base: as the config names it.
        folder: where its files are, on this machine.
        rank: of the policy's adapter.
        length: of the longest prompt and answer together, in tokens.
        token_env: environment variable that holds the token.
    """

    base: str
    folder: str
    rank: int
    length: int
    token_env: str
    sampling: Sampling

    def command(self) -> str:
        """The command that starts such a server."""
        return START.format(base=self.folder, rank=max_lora_rank(self.rank), length=self.length)


def check_server(server: Server, wanted: Wanted) -> None:
    """Check that a server can sample for this run.

    Raises:
        ServerError: it did not respond, or returned a temporary error.
        ModelError: it does not meet the requirements.
    """
    try:
        served = server.models()[0]
        check_served(served, server.url, wanted)
        if wanted.sampling.temperature != 1.0:
            _check_logprobs(server, str(served["id"]), wanted.sampling)
    except ServerError as problem:
        if problem.is_temporary:
            raise
        raise server_mistake(server, problem, wanted) from problem


def check_served(served: Mapping[str, Any], url: str, wanted: Wanted) -> None:
    """Compare the entry of `/v1/models` with the requirements; names by their last part, since paths may
    differ.

    Raises:
        ModelError: the base is another one, or its context is too short.
    """
    names = {str(served.get(key)) for key in ("id", "root")}
    if not {_last(name) for name in names} & {_last(wanted.base), _last(wanted.folder)}:
        raise ModelError(
            f"{url} serves {' as '.join(sorted(names))}, and the run's base is {wanted.base}.",
            allowed="the same base; --served-model-name can set its name",
            fix=wanted.command(),
        )
    length = served.get("max_model_len")
    if isinstance(length, int) and length < wanted.length:
        raise ModelError(
            f"{url} has a context of {length} tokens, prompt and answer together.",
            allowed=f"at least {wanted.length}: data.max_prompt_tokens + rollouts.max_new_tokens",
            fix=wanted.command(),
        )


def _check_logprobs(server: Server, base: str, sampling: Sampling) -> None:
    """Check that log-probabilities include the temperature.

    vLLM's default is those before the temperature: the most likely token's is then the same at every
    temperature.

    Raises:
        ModelError: they are those before the temperature.
    """
    highest = []
    for temperature in (sampling.temperature, 2 * sampling.temperature):
        request = {"model": base, "prompt": [sampling.stop_ids[0]], "max_tokens": 1, "logprobs": 1, "seed": 0}
        response = server.complete(request | {"temperature": temperature, "top_p": 1.0, "top_k": 0})
        highest.append(max(response["choices"][0]["logprobs"]["top_logprobs"][0].values()))
    if highest[0] == highest[1]:
        raise ModelError(
            f"{server.url} returns log-probabilities before the temperature, and rollouts.temperature is "
            f"{sampling.temperature:g}.",
            allowed="--logprobs-mode processed_logprobs, or rollouts.temperature=1",
            fix="restart it with --logprobs-mode processed_logprobs",
        )


def server_mistake(server: Server, problem: ServerError, wanted: Wanted) -> ModelError:
    """The error for a server that rejects a request, with a fix for its operator."""
    if problem.status in (401, 403):
        return ModelError(
            f"{server.url} rejects the token ({problem}).",
            allowed=f"the server's --api-key, in the environment variable {wanted.token_env} "
            "(rollouts.token_env)",
            fix=f"export {wanted.token_env}=...",
        )
    return ModelError(f"{server.url}: {problem}", allowed="a stock vLLM server", fix=wanted.command())


def load_mistake(server: Server, problem: ServerError, wanted: Wanted, folder: str) -> ModelError:
    """The error for a server that does not load an adapter."""
    message = str(problem)
    if problem.status == 404 and "No adapter found" in message:
        return ModelError(
            f"{server.url} does not see the adapter's folder, {folder} ({message}).",
            allowed="a folder that the servers see under the same path",
            fix="rollouts.adapter_folder=FOLDER, on a disk that all of them share",
        )
    if problem.status == 404:
        return ModelError(
            f"{server.url} does not load adapters at run time ({message}).",
            allowed="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in the server's environment",
            fix=wanted.command(),
        )
    if problem.status in (401, 403):
        return server_mistake(server, problem, wanted)
    return ModelError(
        f"{server.url} does not load the adapter of rank {wanted.rank}: {message}",
        allowed="a server with --enable-lora, and --max-lora-rank of at least the adapter's rank",
        fix=wanted.command(),
    )


def _last(name: str) -> str:
    return PurePath(name).name.lower()
