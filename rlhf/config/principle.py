"""The config of `rlhf train-principle`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    OptimizerConfig,
    Place,
    Positive,
    RunConfig,
    Share,
    Strict,
)


class PrincipleDataConfig(Strict):
    """What a principle model learns from."""

    principles: list[DataSource] = Field(min_length=1)
    """Sources of responses with a principle and whether it is fulfilled, `format: helpsteer3-principle`."""
    validation_share: Share = 0.05
    """Share of prompts held out, chosen by a hash of the prompt; they choose the best checkpoint and give the
    final figure."""


class PrincipleConfig(RunConfig):
    """A run that trains an adapter to say whether a response satisfies a principle."""

    adapter: AdapterConfig = AdapterConfig()
    """The adapter that is trained; there is no head."""
    data: PrincipleDataConfig
    """What it learns from."""
    start: Place | None = None
    """A principle model (its `final/` folder) whose adapter training begins from."""
    epochs: Positive = 1.0
    """Passes over the data."""
    max_steps: Count | None = None
    """Stop after this many updates, if that is sooner."""
    batch_size: Count = 64
    """Responses, each with all its principles, in one update over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    tokens_per_batch: Count = 1024
    """Token budget of one packed forward pass: bounds memory, changes no gradient."""
    validate_every: Count = 20
    """Updates between two validations; the best one is kept."""

    @model_validator(mode="after")
    def _has_principles(self) -> Self:
        for source in self.data.principles:
            if source.format != "helpsteer3-principle":
                raise ValueError(
                    f"data.principles: format {source.format!r} holds no principles; write format: "
                    "helpsteer3-principle"
                )
        return self
