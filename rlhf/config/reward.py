"""The schema of `rlhf train-reward`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config import attributes, recipes
from rlhf.config.recipes import RecipeName
from rlhf.config.schema import (
    AdapterConfig,
    Count,
    CountOrZero,
    DataSource,
    NonNegative,
    OptimizerConfig,
    Place,
    Positive,
    ReasoningRule,
    RunConfig,
    Share,
    Strict,
    Whole,
)
from rlhf.core.records import HELPSTEER_ATTRIBUTES

EXPO_FACTORS = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)
"""The factors of the paper's search (from memory, not checked against a source)."""
START = "start"
"""The name of the `start` model's weights where a stage's name is expected."""


class RewardDataConfig(Strict):
    """Ratings, preferences, or both; rows on the same responses are joined."""

    ratings: list[DataSource] = Field(default_factory=list)
    """Sources of responses with attribute ratings."""
    preferences: list[DataSource] = Field(default_factory=list)
    """Sources of response pairs with a preference strength."""
    pair_rated: bool = False
    """Also make preferences of two rated responses to the same prompt that differ in the first attribute; the
    strength is the difference, rounded, 1 to 3."""
    max_spread: Annotated[Whole, Field(ge=0, le=6)] = 2
    """Drop raw annotations whose three most similar values differ by more than this (the paper: 2)."""
    validation_share: Share = 0.05
    """Share of prompts held out for validation, chosen by a hash of the prompt."""
    test_share: Share = 0.0
    """Share of prompts held out for the final accuracy alone; with 0 it is measured on the validation
    prompts, which also select the best checkpoint."""


class StageConfig(Strict):
    """One stage of training; all stages train the same adapter and head, one after another."""

    name: str
    """A short name, used in metrics and folders."""
    regression_weight: NonNegative = 0.0
    """Weight of the mean squared error on the rated attributes."""
    preference_weight: NonNegative = 0.0
    """Weight of the Bradley-Terry term on the reward."""
    preference_loss: Literal["regular", "margin", "scaled"] = "scaled"
    """Bradley-Terry loss: regular, with the strength as margin, or scaled by the strength."""
    centering_weight: NonNegative = 0.0
    """Weight of the mean of (chosen + rejected reward)^2 over pairs, which centres rewards at 0; TRL
    recommends 0.01."""
    epochs: Positive = 1.0
    """Passes over the data of this stage."""
    max_steps: Count | None = None
    """Stop after this many updates, if that is earlier."""
    batch_size: Count = 64
    """Items (pairs, or single rated responses) in one update, over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW for this stage."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.regression_weight == 0 and self.preference_weight == 0:
            raise ValueError("regression_weight and preference_weight are 0; set one of them above 0")
        if self.centering_weight and not self.preference_weight:
            raise ValueError("centering_weight is over pairs: it needs preference_weight above 0")
        return self


class ExpoConfig(Strict):
    """Weight extrapolation (ExPO) after the last stage: weak + factor * (strong - weak)."""

    weak: str
    """The stage with the weak weights (factor 0); `start` is the model of the key `start`."""
    strong: str
    """The later stage with the strong weights (factor 1)."""
    factors: list[Positive] = Field(default_factory=lambda: list(EXPO_FACTORS), min_length=1)
    """Factors evaluated on the held-out pairs, in addition to 1; the most accurate is used, ties are decided
    by the lower Bradley-Terry loss."""
    refine: Positive | None = 0.01
    """Step size of a second search between the neighbours of the best factor; null: none."""
    rank: Count | None = None
    """Truncate the extrapolated adapter to this rank; null keeps it exact, with twice the rank."""


class RewardConfig(RunConfig):
    """A reward-model run."""

    adapter: AdapterConfig = AdapterConfig()
    """The reward model's LoRA adapter."""
    attributes: list[str] = Field(default_factory=lambda: list(HELPSTEER_ATTRIBUTES), min_length=1)
    """The head's outputs; the first is the reward. Without `data.ratings` the default is `helpfulness` alone,
    or the outputs of `start`."""
    reasoning: ReasoningRule = "keep"
    """Reasoning in answers, between `<think>` and `</think>`: `keep` scores it, `strip` removes it first,
    `refuse` does not score such answers. Stored with the model and used wherever it scores."""
    data: RewardDataConfig
    """The training data."""
    recipe: RecipeName | None = None
    """A row of the paper's table: sets losses, attributes and ExPO; `stages` then has settings for the names
    regression, preference or hybrid."""
    start: Place | None = None
    """A reward model (its `final/` folder) to initialise adapter and head from; with a recipe, it replaces
    the regression stage."""
    stages: list[StageConfig] = Field(min_length=1)
    """Stages of training, in this order."""
    expo: ExpoConfig | None = None
    """Weight extrapolation (ExPO) at the end; `final/` is then the extrapolated model."""
    head_start: CountOrZero = 1024
    """Items on which the head is fitted before training, by ridge regression on the frozen base; not done
    with 0 or with `start`. It helps in short runs on clean ratings (docs/real-data.md)."""
    tokens_per_batch: Count = 1024
    """Token budget of one packed forward pass: limits memory, changes no gradient."""
    validate_every: Count = 20
    """Updates between two validations; the best checkpoint is kept."""
    benchmark: Place | None = None
    """Benchmark that is scored at the end: a file with RewardBench's columns, `rewardbench`, or `demo`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:
        return attributes.fill(recipes.fill(data)) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _pick_stages(self) -> Self:
        if self.recipe is not None:
            names = recipes.stage_names(self.recipe, started=self.start is not None)
            by_name = {stage.name: stage for stage in self.stages}
            object.__setattr__(self, "stages", [by_name[name] for name in names])
        return self

    @model_validator(mode="after")
    def _data_for_terms(self) -> Self:
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"attributes: found a name twice in {self.attributes}; remove one of the two")
        needs_ratings = any(stage.regression_weight > 0 for stage in self.stages)
        needs_pairs = any(stage.preference_weight > 0 for stage in self.stages)
        if needs_ratings and not self.data.ratings:
            raise ValueError("a stage has regression_weight above 0, but data.ratings is empty")
        if self.data.pair_rated and not self.data.ratings:
            raise ValueError("data.pair_rated makes pairs of data.ratings, which is empty")
        if needs_pairs and not self.data.preferences and not self.data.pair_rated:
            raise ValueError("a stage has preference_weight above 0, but data.preferences is empty")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("stages: two stages have the same name; rename or remove one of them")
        return self

    @model_validator(mode="after")
    def _expo_between_stages(self) -> Self:
        if self.expo is None:
            return self
        names = [*([START] if self.start else []), *(stage.name for stage in self.stages)]
        weak, strong = self.expo.weak, self.expo.strong
        for name in (weak, strong):
            if name not in names:
                raise ValueError(f"expo: there is no stage {name!r}, only {', '.join(names)}")
        if names.index(weak) >= names.index(strong):
            raise ValueError(f"expo.weak ({weak!r}) must come before expo.strong ({strong!r})")
        if not self.data.preferences and not self.data.pair_rated:
            raise ValueError("expo selects its factor on held-out pairs, but data.preferences is empty")
        return self
