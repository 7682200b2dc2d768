"""The config of `rlhf train-dpo`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.config.policy import PolicyOptimizerConfig
from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    ModelConfig,
    Place,
    Positive,
    RunConfig,
    Share,
    Strict,
)

DPOLoss = Literal["regular", "margin", "scaled"]


class DPODataConfig(Strict):
    """What DPO learns from."""

    preferences: list[DataSource] = Field(min_length=1)
    """Sources of preferences. `margin` and `scaled` need their strength."""
    validation_share: Share = 0.05
    """Share of prompts held out, chosen by a hash of the prompt, for the log and the final figures."""
    exclude: list[DataSource] = Field(default_factory=list)
    """Sources of prompts that are not trained on, such as those of an evaluation."""


class DPOTraining(Strict):
    """How long and how fast DPO trains."""

    beta: Positive = 0.1
    """Scale of the implicit reward, beta x log (policy / reference): the higher, the less a given loss moves
    the policy. TRL's default is 0.1, NeMo-Aligner's 0.2."""
    epochs: Positive = 1.0
    """Passes over the pairs."""
    max_steps: Count | None = None
    """Stop after this many updates, if that is sooner."""
    batch_size: Count = 64
    """Pairs in one update over all processes."""
    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """AdamW."""


class DPOConfig(DPOTraining, RunConfig):
    """A run of direct preference optimisation: a policy from preferences, without a reward model."""

    model: ModelConfig = ModelConfig()
    """The frozen base; it is the reference unless `start` is set."""
    adapter: AdapterConfig = AdapterConfig()
    """The policy's LoRA adapter."""
    start: Place | None = None
    """Start from a policy (the `final/` folder of `train-dpo` or `align-policy`) with the same base, template
    and adapter settings; a frozen copy of it is the reference. null: a new adapter, and the base is the
    reference."""
    data: DPODataConfig
    """The preferences."""
    loss: DPOLoss = "regular"
    """`regular`; or with the strength m of a preference: `margin`, m subtracted from the margin of the
    implicit rewards, or `scaled`, the loss of a pair multiplied by m."""
    tokens_per_batch: Count = 2048
    """Token budget of one packed forward pass: bounds memory, changes no gradient."""
    validate_every: Count = 20
    """Updates between two validations."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0 for DPO: dropout adds noise to the log-ratios of policy and "
                "reference"
            )
        return self
