"""How answers are sampled: the `rollouts` section of an alignment run."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlhf.config.schema import Count, Number, Place, Positive, Strict

TOKEN_ENV = "RLHF_ROLLOUT_TOKEN"  # noqa: S105 - the name of a variable


class ImportanceConfig(Strict):
    """Truncated importance sampling between the engine that samples and the trainer that learns."""

    level: Literal["token", "sequence"] = "token"
    """One weight a token, or one an answer, which `rloo` needs."""
    cap: Annotated[Number, Field(ge=1)] = 2.0
    """Weights, exp(log-probability by the trainer - by the engine), are cut off here."""


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


def _address(told: str) -> str:
    """A server's address, without the `/v1` that other clients want."""
    if not re.fullmatch(r"https?://[^?#@\s]+", told):
        raise ValueError(f"found {told!r}; write http://HOST:PORT, and put a token into the environment")
    return told.rstrip("/").removesuffix("/v1")


Address = Annotated[str, AfterValidator(_address)]


class RolloutConfig(Strict):
    """How answers are sampled."""

    engine: Literal["vllm", "servers", "transformers"] = "vllm"
    """vLLM in this process; stock vLLM servers, here or elsewhere; or transformers' own generate where vLLM is not installed."""
    servers: list[Address] = Field(default_factory=list)
    """Addresses of vLLM's OpenAI servers, such as http://127.0.0.1:8000; all serve the base, and take the adapter over HTTP."""
    token_env: str = TOKEN_ENV
    """With servers: the environment variable that holds their token, where they want one."""
    adapter_folder: Place | None = None
    """With servers: a folder that they see too, under the same path, where the adapter is left for them; null is `adapters/` in the run folder."""
    timeout: Positive = 1800.0
    """With servers: seconds to wait for the answers to one prompt before the server is given up."""
    overlap: Literal[0, 1] = 0
    """With servers: 1 samples the answers of an update while the one before is made, by a policy that is one update old; it needs `importance_sampling`."""
    prompts_per_step: Count = 16
    """Prompts in one update, over all processes."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt; the leave-one-out baseline needs two, the paper uses four."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities are those of the same distribution."""
    memory_gib: Positive = 0.5
    """CPU only: size of vLLM's key-value cache."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.35
    """GPU only: share of the card's memory that vLLM may take, its copy of the base included."""
    max_num_batched_tokens: Count = 8192
    """GPU only: tokens of one step of the engine at most, prompts included; more read prompts faster and take more memory."""
    continuous_batching: bool | None = None
    """With transformers: a paged cache on the trained model itself. null: on a GPU, unless weights are sharded; false: `generate`, padded; true: on a CPU too, slowly."""
    sleep: bool = False
    """GPU only: vLLM's sleep mode. Between rollouts its weights go to the host's memory and its cache is dropped, so that the trainer has the whole GPU."""
    logprob_bound: Positive = 0.5
    """The run stops when engine and trainer differ by more than this, in the mean over a batch's tokens."""
    importance_sampling: Annotated[ImportanceConfig | None, BeforeValidator(_off)] = None
    """Correct what mismatch of engine and trainer remains; `off` (null) only logs what the weights would be."""

    @model_validator(mode="after")
    def _servers_fit(self) -> Self:
        if (self.engine == "servers") != bool(self.servers):
            raise ValueError("servers goes with engine: servers, which needs it, and only with it")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers: one address stands there twice")
        if self.engine != "servers":
            fields = type(self).model_fields
            told = [key for key in ONLY_WITH_SERVERS if getattr(self, key) != fields[key].default]
            if told:
                raise ValueError(f"{told[0]} goes with engine: servers, and only with it")
        if self.continuous_batching is not None and self.engine != "transformers":
            raise ValueError("continuous_batching goes with engine: transformers, and only with it")
        if self.sleep and self.engine != "vllm":
            raise ValueError("sleep goes with engine: vllm, and only with it")
        if self.overlap and self.importance_sampling is None:
            raise ValueError(
                "overlap: 1 learns from answers of a policy that is one update old, which only importance_sampling corrects: "
                "add importance_sampling: {level: sequence} (rloo) or {level: token}, or take overlap: 0"
            )
        return self


MAX_LORA_RANK = 512
"""Highest rank of an adapter that vLLM takes (`MaxLoRARanks` of vllm.config.lora)."""
ONLY_WITH_SERVERS = ("token_env", "adapter_folder", "timeout", "overlap")
