"""Before the first rollout: does a server serve this base, with room enough, and tell the log-probabilities that are meant?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from policy.rollouts.protocol import Sampling
from policy.rollouts.server_client import Server, ServerError
from rlhf.core.errors import ModelError

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model {base} "
    "--enable-lora --max-lora-rank {rank} --max-model-len {length}"
)


@dataclass(frozen=True)
class Wanted:
    """What every server must be.

    Attributes:
        base: as the config names it.
        folder: where its files are, on this machine.
        rank: of the policy's adapter.
        length: longest prompt and answer together.
        token_env: the variable that holds the token.
    """

    base: str
    folder: str
    rank: int
    length: int
    token_env: str
    sampling: Sampling

    def command(self) -> str:
        """How to start such a server; vLLM takes ranks that are powers of two from 8."""
        rank = max(8, 1 << (self.rank - 1).bit_length())
        return START.format(base=self.folder, rank=rank, length=self.length)


def check_server(server: Server, wanted: Wanted) -> None:
    """Make sure that a server can sample for this run.

    Raises:
        ServerError: it gave no answer, or an error of its own.
        ModelError: it is another server than is wanted.
    """
    try:
        served = server.models()[0]
        check_served(served, server.url, wanted)
        if wanted.sampling.temperature != 1.0:
            _check_logprobs(server, str(served["id"]), wanted.sampling)
    except ServerError as problem:
        if problem.may_pass:
            raise
        raise mistake(server, problem, wanted) from problem


def check_served(served: Mapping[str, Any], url: str, wanted: Wanted) -> None:
    """Compare what `/v1/models` says of the base; names by their last part, since the same files may lie elsewhere."""
    names = {str(served.get(key)) for key in ("id", "root")}
    if not {_last(name) for name in names} & {_last(wanted.base), _last(wanted.folder)}:
        raise ModelError(
            f"{url} serves {' as '.join(sorted(names))}, and the run's base is {wanted.base}.",
            allowed="the same weights; a server may give them the base's name by --served-model-name",
            fix=wanted.command(),
        )
    length = served.get("max_model_len")
    if isinstance(length, int) and length < wanted.length:
        raise ModelError(
            f"{url} takes {length} tokens, prompt and answer together.",
            allowed=f"at least {wanted.length}: data.max_prompt_tokens + rollouts.max_new_tokens",
            fix=wanted.command(),
        )


def _check_logprobs(server: Server, base: str, sampling: Sampling) -> None:
    """At another temperature than 1 the log-probabilities must be those of the tempered distribution.

    By default vLLM tells those from before the temperature: the likeliest token's is then the same at every temperature.
    """
    likeliest = []
    for temperature in (sampling.temperature, 2 * sampling.temperature):
        request = {"model": base, "prompt": [sampling.stop_ids[0]], "max_tokens": 1, "logprobs": 1, "seed": 0}
        answer = server.complete(request | {"temperature": temperature, "top_p": 1.0, "top_k": 0})
        likeliest.append(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
    if likeliest[0] == likeliest[1]:
        raise ModelError(
            f"{server.url} tells log-probabilities from before the temperature, and rollouts.temperature is {sampling.temperature:g}.",
            allowed="--logprobs-mode processed_logprobs, or rollouts.temperature=1",
            fix="start it again with --logprobs-mode processed_logprobs",
        )


def mistake(server: Server, problem: ServerError, wanted: Wanted) -> ModelError:
    """A server's refusal, in the words of whoever started it."""
    if problem.status in (401, 403):
        return ModelError(
            f"{server.url} refuses the token ({problem}).",
            allowed=f"the server's --api-key, in the environment variable {wanted.token_env} (rollouts.token_env)",
            fix=f"export {wanted.token_env}=...",
        )
    return ModelError(f"{server.url}: {problem}", allowed="a stock vLLM server", fix=wanted.command())


def load_mistake(server: Server, problem: ServerError, wanted: Wanted, folder: str) -> ModelError:
    """Why a server does not take an adapter."""
    said = str(problem)
    if problem.status == 404 and "No adapter found" in said:
        return ModelError(
            f"{server.url} does not see the adapter's folder, {folder} ({said}).",
            allowed="a folder that the servers see under the same path",
            fix="rollouts.adapter_folder=FOLDER, on a disk that all of them share",
        )
    if problem.status == 404:
        return ModelError(
            f"{server.url} does not let adapters be loaded while it runs ({said}).",
            allowed="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in the server's environment",
            fix=wanted.command(),
        )
    if problem.status in (401, 403):
        return mistake(server, problem, wanted)
    return ModelError(
        f"{server.url} does not take the adapter of rank {wanted.rank}: {said}",
        allowed="a server with --enable-lora, and --max-lora-rank no smaller than the adapter's",
        fix=wanted.command(),
    )


def _last(name: str) -> str:
    return PurePath(name).name.lower()
