"""What `rlhf align-policy` may be told."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.rollouts import RolloutConfig
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
    def _levels_agree(self) -> Self:
        importance = self.rollouts.importance_sampling
        if self.algorithm.name == "rloo" and importance is not None and importance.level == "token":
            raise ValueError(
                "rloo has one ratio an answer: rollouts.importance_sampling.level must be sequence"
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0 for a policy: with it every log-probability, and so the KL, is noise"
            )
        return self
