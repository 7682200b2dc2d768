"""What `rlhf train-reward` may be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config import recipes
from rlhf.config.recipes import RecipeName
from rlhf.config.schema import (
    AdapterConfig,
    Count,
    CountOrZero,
    DataSource,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Place,
    Positive,
    RunConfig,
    Share,
    Strict,
    Whole,
)
from rlhf.core.records import HELPSTEER_ATTRIBUTES

EXPO_FACTORS = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)
"""The search of the paper (from memory; not read in a source)."""
START = "start"
"""What the weights of another reward model are called where a stage's name may stand."""


class RewardDataConfig(Strict):
    """Ratings, preferences, or both; rows on the same responses are joined."""

    ratings: list[DataSource] = Field(default_factory=list)
    """Sources of responses with attribute ratings."""
    preferences: list[DataSource] = Field(default_factory=list)
    """Sources of response pairs with a preference strength."""
    pair_rated: bool = False
    """Make a preference, too, of two rated responses to one prompt that differ in the first attribute; strength: the difference, rounded, 1 to 3."""
    max_spread: Annotated[Whole, Field(ge=0, le=6)] = 2
    """Raw annotations whose three most similar differ by more than this are dropped (the paper: 2)."""
    validation_share: Share = 0.05
    """Share of prompts held out for validation, chosen by a hash of the prompt, so it never leaks."""
    test_share: Share = 0.0
    """Share of prompts kept for the final figure alone; at 0 it is taken on the validation prompts, which also choose the best checkpoint."""


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
    centering_weight: NonNegative = 0.0
    """Weight of the mean over pairs of (chosen + rejected reward) squared, which keeps rewards around 0; TRL recommends 0.01."""
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
        if self.centering_weight and not self.preference_weight:
            raise ValueError("centering_weight is a mean over pairs: it needs preference_weight above 0")
        return self


class ExpoConfig(Strict):
    """After the last stage: go on in the direction from the weights of one stage to those of a later one."""

    weak: str
    """The stage whose weights are the origin; `start` stands for the model that `start` names."""
    strong: str
    """The later stage: factor 1."""
    factors: list[Positive] = Field(default_factory=lambda: list(EXPO_FACTORS), min_length=1)
    """Factors that are tried on the held-out pairs, beside 1; the most accurate wins, ties go to the lower Bradley-Terry loss."""
    refine: Positive | None = 0.01
    """Then steps of this size between the neighbours of the best factor; null: none."""
    rank: Count | None = None
    """Cut the extrapolated adapter to this rank; null keeps it exact, in twice the rank."""


class RewardConfig(RunConfig):
    """A reward-model run."""

    model: ModelConfig = ModelConfig()
    """The frozen base."""
    adapter: AdapterConfig = AdapterConfig()
    """The adapter that learns to score."""
    attributes: list[str] = Field(default_factory=lambda: list(HELPSTEER_ATTRIBUTES), min_length=1)
    """One head output each; the first is the reward."""
    reasoning: Literal["keep", "strip", "refuse"] = "keep"
    """What it sees of reasoning in answers, between `<think>` and `</think>`: all, none, or such answers are not scored. Stored with the model and followed wherever it scores."""
    data: RewardDataConfig
    """What it learns from."""
    recipe: RecipeName | None = None
    """A row of the paper's table by its name: decides losses, attributes and ExPO; `stages` then holds settings by the names regression, preference or hybrid."""
    start: Place | None = None
    """A reward model (its `final/` folder) whose adapter and head training begins from; with a recipe, in place of its regression stage."""
    stages: list[StageConfig] = Field(min_length=1)
    """Trained in this order."""
    expo: ExpoConfig | None = None
    """Extrapolate from one stage to another at the end (ExPO); `final/` is then what came of it."""
    head_start: CountOrZero = 1024
    """Items on which the head is fitted before training, by ridge regression on the frozen base; 0, or `start`, does without."""
    tokens_per_batch: Count = 1024
    """Token budget of one packed forward pass: bounds memory, changes no gradient."""
    validate_every: Count = 20
    """Updates between two validations; the best one is kept."""
    save_every: Count = 20
    """Updates between two checkpoints."""
    benchmark: Place | None = None
    """A file in RewardBench's columns, or `rewardbench`, scored at the end; also `demo`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, data: Any) -> Any:
        return recipes.fill(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _pick_stages(self) -> Self:
        if self.recipe is not None:
            wanted = recipes.stage_names(self.recipe, started=self.start is not None)
            by_name = {stage.name: stage for stage in self.stages}
            object.__setattr__(self, "stages", [by_name[name] for name in wanted])
        return self

    @model_validator(mode="after")
    def _data_for_terms(self) -> Self:
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes are repeated")
        wants_ratings = any(stage.regression_weight > 0 for stage in self.stages)
        wants_pairs = any(stage.preference_weight > 0 for stage in self.stages)
        if wants_ratings and not self.data.ratings:
            raise ValueError("a stage has regression_weight above 0, but data.ratings is empty")
        if self.data.pair_rated and not self.data.ratings:
            raise ValueError("data.pair_rated makes pairs of data.ratings, which is empty")
        if wants_pairs and not self.data.preferences and not self.data.pair_rated:
            raise ValueError("a stage has preference_weight above 0, but data.preferences is empty")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have the same name")
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
            raise ValueError("expo chooses its factor on held-out pairs, but data.preferences is empty")
        return self
