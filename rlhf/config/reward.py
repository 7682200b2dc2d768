"""What `rlhf train-reward` may be told."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import (
    AdapterConfig,
    Count,
    CountOrZero,
    DataSource,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Positive,
    RunConfig,
    Share,
    Strict,
    Whole,
)
from rlhf.core.records import HELPSTEER_ATTRIBUTES


class RewardDataConfig(Strict):
    """Ratings, preferences, or both; rows on the same responses are joined."""

    ratings: list[DataSource] = Field(default_factory=list)
    """Sources of responses with attribute ratings."""
    preferences: list[DataSource] = Field(default_factory=list)
    """Sources of response pairs with a preference strength."""
    max_spread: Annotated[Whole, Field(ge=0, le=6)] = 2
    """Raw annotations whose three most similar differ by more than this are dropped (the paper: 2)."""
    validation_share: Share = 0.05
    """Share of prompts held out for validation, chosen by a hash of the prompt, so it never leaks."""


class StageConfig(Strict):
    """One stage of training; stages follow one another on the same adapter and head."""

    name: str
    """A short name, used in metrics and folders."""
    regression_weight: NonNegative = 0.0
    """Weight of the masked mean squared error on the attributes present."""
    preference_weight: NonNegative = 0.0
    """Weight of the Bradley-Terry term on the reward."""
    preference_loss: Literal["regular", "margin", "scaled"] = "scaled"
    """Bradley-Terry: regular, with the strength as margin, or scaled by the strength."""
    epochs: Positive = 1.0
    """Passes over the data this stage uses."""
    max_steps: Count | None = None
    """Stop after this many updates, if that is sooner."""
    batch_size: Count = 64
    """Items (pairs, or single rated responses) in one update, over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW for this stage."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.regression_weight == 0 and self.preference_weight == 0:
            raise ValueError("a stage needs regression_weight or preference_weight above 0")
        return self


class RewardConfig(RunConfig):
    """A reward-model run."""

    model: ModelConfig = ModelConfig()
    """The frozen base."""
    adapter: AdapterConfig = AdapterConfig()
    """The adapter that learns to score."""
    attributes: list[str] = Field(default_factory=lambda: list(HELPSTEER_ATTRIBUTES), min_length=1)
    """One head output each; the first is the reward."""
    data: RewardDataConfig
    """What it learns from."""
    stages: list[StageConfig] = Field(min_length=1)
    """Trained in this order."""
    head_start: CountOrZero = 1024
    """Items on which the head is fitted before training, by ridge regression on the frozen base; 0 starts it at zero."""
    tokens_per_batch: Count = 1024
    """Token budget of one packed forward pass: bounds memory, changes no gradient."""
    validate_every: Count = 20
    """Updates between two validations; the best one is kept."""
    save_every: Count = 20
    """Updates between two checkpoints."""
    benchmark: str | None = None
    """A file in RewardBench's columns, or `rewardbench`, scored at the end; also `demo`."""

    @model_validator(mode="after")
    def _data_for_terms(self) -> Self:
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes are repeated")
        wants_ratings = any(stage.regression_weight > 0 for stage in self.stages)
        wants_pairs = any(stage.preference_weight > 0 for stage in self.stages)
        if wants_ratings and not self.data.ratings:
            raise ValueError("a stage has regression_weight above 0, but data.ratings is empty")
        if wants_pairs and not self.data.preferences:
            raise ValueError("a stage has preference_weight above 0, but data.preferences is empty")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have the same name")
        return self
