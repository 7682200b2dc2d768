"""The `rollouts` section of a policy config: the engine, and how answers are sampled."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlhf.config.schema import Count, Number, Place, Positive, Strict

TOKEN_ENV = "RLHF_ROLLOUT_TOKEN"  # noqa: S105 - the name of a variable


class ImportanceConfig(Strict):
    """Truncated importance sampling between rollout engine and trainer."""

    level: Literal["token", "sequence"] = "token"
    """One weight per token, or one per answer, which `rloo` needs."""
    cap: Annotated[Number, Field(ge=1)] = 2.0
    """Upper bound of the weights exp(log-probability by the trainer - by the engine)."""


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


def _address(url: str) -> str:
    """A server's address without a trailing `/v1`."""
    if not re.fullmatch(r"https?://[^?#@\s]+", url):
        raise ValueError(f"found {url!r}; write http://HOST:PORT, and put a token into the environment")
    return url.rstrip("/").removesuffix("/v1")


Address = Annotated[str, AfterValidator(_address)]


class RolloutConfig(Strict):
    """The rollout engine and its sampling settings."""

    engine: Literal["vllm", "servers", "transformers"] = "vllm"
    """`vllm`: in this process; `servers`: unmodified vLLM servers; `transformers`: its `generate`, where vLLM
    is not installed."""
    servers: list[Address] = Field(default_factory=list)
    """Addresses of vLLM's OpenAI servers, such as http://127.0.0.1:8000; all serve the base, and load the
    adapter over HTTP."""
    token_env: str = TOKEN_ENV
    """With servers: the environment variable with their token, if they need one."""
    adapter_folder: Place | None = None
    """With servers: a shared folder, with the same path on the servers, where adapters are written; null:
    `adapters/` in the run folder."""
    timeout: Positive = 1800.0
    """With servers: seconds to wait for the answers to one prompt before the request fails."""
    overlap: Literal[0, 1] = 0
    """With servers: 1 samples the answers of the next update while this one is trained, by a policy one
    update behind; needs `importance_sampling`."""
    prompts_per_step: Count = 16
    """Prompts per update, over all processes."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers per prompt; the leave-one-out baseline needs two, the paper uses four."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities are of the same distribution."""
    memory_gib: Positive = 0.5
    """CPU only: size of vLLM's key-value cache."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.35
    """GPU only: fraction of the GPU's memory for vLLM, its copy of the base included."""
    max_num_batched_tokens: Count = 8192
    """GPU only: most tokens of one engine step, prompts included; a higher value is faster on prompts and
    takes more memory."""
    continuous_batching: bool | None = None
    """With transformers: continuous batching with a paged cache on the trained model. null: on a GPU, unless
    weights are sharded; false: padded `generate`; true: always, also on a CPU, where it is slow."""
    sleep: bool = False
    """GPU only: vLLM's sleep mode. Between rollouts its weights are moved to CPU memory and its cache is
    freed, so that the trainer has the whole GPU."""
    logprob_bound: Positive = 0.5
    """Stop the run if the log-probabilities of engine and trainer differ by more than this, in the mean over
    a batch's tokens."""
    importance_sampling: Annotated[ImportanceConfig | None, BeforeValidator(_off)] = None
    """Correct the mismatch between engine and trainer; `off` (null) only logs the weights."""

    @property
    def answers(self) -> int:
        """Answers of an update, over all processes."""
        return self.prompts_per_step * self.samples_per_prompt

    @model_validator(mode="after")
    def _servers_fit(self) -> Self:
        if (self.engine == "servers") != bool(self.servers):
            raise ValueError("engine: servers and a list of servers need each other; set both or neither")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers: found an address twice; remove one of the two")
        if self.engine != "servers":
            fields = type(self).model_fields
            changed = [key for key in ONLY_WITH_SERVERS if getattr(self, key) != fields[key].default]
            if changed:
                raise ValueError(f"{changed[0]} needs engine: servers")
        if self.engine != "transformers" and not 0.01 <= self.temperature <= 2:
            raise ValueError(
                f"temperature is {self.temperature:g}, and vLLM samples at 0.01 to 2: change it, or set "
                "engine: transformers"
            )
        if self.continuous_batching is not None and self.engine != "transformers":
            raise ValueError("continuous_batching needs engine: transformers")
        if self.sleep and self.engine != "vllm":
            raise ValueError("sleep needs engine: vllm")
        if self.overlap and self.importance_sampling is None:
            raise ValueError(
                "overlap: 1 trains on answers of a policy that is one update behind, which "
                "importance_sampling corrects: "
                "add importance_sampling: {level: sequence} (rloo) or {level: token}, or set overlap: 0"
            )
        return self


MAX_LORA_RANK = 512
"""Highest LoRA rank that vLLM supports (`MaxLoRARanks` of vllm.config.lora)."""
ONLY_WITH_SERVERS = ("token_env", "adapter_folder", "timeout", "overlap")
