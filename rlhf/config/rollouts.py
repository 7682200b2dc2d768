"""How answers are sampled: the `rollouts` section of an alignment run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rlhf.config.schema import Count, Number, Positive, Strict


class ImportanceConfig(Strict):
    """Truncated importance sampling between the engine that samples and the trainer that learns."""

    level: Literal["token", "sequence"] = "token"
    """One weight a token, or one an answer, which `rloo` needs."""
    cap: Annotated[Number, Field(ge=1)] = 2.0
    """Weights, exp(log-probability by the trainer - by the engine), are cut off here."""


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


class RolloutConfig(Strict):
    """How answers are sampled."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vLLM in this process, or transformers' own generate where vLLM is not installed."""
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
    logprob_bound: Positive = 0.5
    """The run stops when engine and trainer differ by more than this, in the mean over a batch's tokens."""
    importance_sampling: Annotated[ImportanceConfig | None, BeforeValidator(_off)] = None
    """Correct what mismatch of engine and trainer remains; `off` (null) only logs what the weights would be."""
