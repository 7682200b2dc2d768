"""What `rlhf align-policy` may be told."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Positive,
    RunConfig,
    Strict,
)


class KLConfig(Strict):
    """The penalty that keeps the policy close to the reference, subtracted from the reward."""

    estimator: Literal["k1", "abs", "k2", "k3"] = "k1"
    """Per token, with d = log policy - log reference: k1 = d, abs = |d|, k2 = d^2/2, k3 = exp(-d) - 1 + d."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the tokens of an answer: TRL sums, NeMo-Aligner takes the mean (of `abs`). The coefficients differ by the length."""
    coefficient: NonNegative = 0.05
    """How much a unit of KL costs in units of reward."""


class AlgorithmConfig(Strict):
    """How rewards become an update."""

    name: Literal["reinforce"] = "reinforce"
    """REINFORCE with the leave-one-out baseline."""
    reduction: Literal["sequence_sum", "token_mean"] = "sequence_sum"
    """Log-probabilities of an answer: summed (TRL's RLOO), or averaged over its tokens (NeMo-Aligner)."""
    kl: KLConfig = KLConfig()
    """The KL penalty."""
    unfinished: Literal["drop", "keep", "penalty"] = "drop"
    """Answers cut at max_new_tokens: no gradient and no part in the baseline (NeMo-Aligner), as they are, or `unfinished_reward`."""
    unfinished_reward: float | None = None
    """The reward of an unfinished answer where `unfinished` is `penalty`."""

    @model_validator(mode="after")
    def _penalty_has_value(self) -> Self:
        if (self.unfinished == "penalty") != (self.unfinished_reward is not None):
            raise ValueError("unfinished_reward goes with unfinished: penalty, and only with it")
        return self


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


class EvaluationConfig(Strict):
    """Held-out prompts, answered before and after."""

    prompts: Count = 64
    """How many held-out prompts."""
    samples: Count = 2
    """Answers to each."""


class PolicyDataConfig(Strict):
    """Prompts to learn on; held-out ones are taken off first, by a hash of the prompt."""

    prompts: list[DataSource] = Field(min_length=1)
    """Sources of prompts."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped, and counted."""


class PolicyOptimizerConfig(OptimizerConfig):
    """AdamW for the policy: gentler than for a reward model."""

    learning_rate: Positive = 3e-5
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay on matrices."""


class PolicyConfig(RunConfig):
    """An alignment run."""

    model: ModelConfig = ModelConfig()
    """The frozen base: the reference, and the ground of policy and reward."""
    adapter: AdapterConfig = AdapterConfig()
    """The adapter that becomes the policy."""
    reward: str
    """A reward model: the `final/` folder of `rlhf train-reward`, on the same base."""
    data: PolicyDataConfig
    """What it practises on."""
    rollouts: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """How rewards become an update."""
    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """AdamW."""
    steps: Count = 100
    """Updates."""
    save_every: Count = 20
    """Updates between two checkpoints."""
    tokens_per_batch: Count = 2048
    """Token budget of one packed forward pass; a prompt and its answers always stay together."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Before and after."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0 for a policy: with it every log-probability, and so the KL, is noise"
            )
        return self
