"""The config of `rlhf train-justifier`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    OptimizerConfig,
    Positive,
    RunConfig,
    Share,
    Strict,
    Whole,
)


class JustifierDataConfig(Strict):
    """What a justifier learns from."""

    justifications: list[DataSource] = Field(min_length=1)
    """Sources of pairs with written reasons: `format: helpsteer2-preference` or `helpsteer3`."""
    max_spread: Annotated[Whole, Field(ge=0, le=6)] = 2
    """With `annotations: raw`: pairs whose three most similar annotations differ by more are dropped."""
    test_share: Share = 0.0
    """Share of prompts left out of training and evaluation: those of a reward model's `data.test_share`."""
    validation_share: Share = 0.05
    """Share of prompts held out, chosen by a hash of the prompt; their verdicts give the final figure."""


class JustifierConfig(RunConfig):
    """A run that trains a model to write a justification and then a verdict on two responses."""

    adapter: AdapterConfig = AdapterConfig()
    """The adapter that is trained."""
    data: JustifierDataConfig
    """What it learns from."""
    epochs: Positive = 1.0
    """Passes over the data."""
    max_steps: Count | None = None
    """Stop after this many updates, if that is sooner."""
    batch_size: Count = 64
    """Pairs in one update, over all processes."""
    micro_batch_size: Count = 4
    """Pairs in one forward pass of a process; changes no gradient. Divides the batch size of a process."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    max_new_tokens: Count = 256
    """Longest justification that is written in evaluation."""
    evaluation_pairs: Count = 200
    """At most this many held-out pairs are judged at the end."""

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self
