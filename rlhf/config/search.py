"""The schema of `rlhf search`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import Count, CountOrZero, FilePath, Number, Positive, Seed, Strict

Direction = Literal["maximize", "minimize"]


class ParameterConfig(Strict):
    """The values of one searched key: a range from `low` to `high`, or `choices`."""

    low: Number | None = None
    """Lowest value."""
    high: Number | None = None
    """Highest value."""
    log: bool = False
    """Sample on a log scale, as for a learning rate."""
    step: Positive | None = None
    """Only the values low, low + step, low + 2 step, ..."""
    choices: list[Any] | None = Field(default=None, min_length=1)
    """The allowed values, of any type, lists included."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError(
                    "choices cannot be combined with low, high, log or step; remove one or the other"
                )
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs low and high; or write choices: [...]")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low must be above 0, found {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be combined; remove one of them")
        return self


class ObjectiveConfig(Strict):
    """The objective by which trials are compared."""

    metric: str
    """The dotted path of a number in a trial's eval.json, such as held_out.overall or
    difference.gold.mean."""
    direction: Direction = "maximize"
    """Whether a higher or a lower value is better."""


class PruningConfig(Strict):
    """Pruning: stopping unpromising trials early."""

    metric: str
    """A name in a trial's metrics.jsonl, such as validation/accuracy or reward/mean."""
    direction: Direction = "maximize"
    """Whether a higher or a lower value is better."""
    method: Literal["median", "halving"] = "median"
    """`median`: prune if the best value so far is below the median of the completed trials at the same
    update; `halving`: at updates w, 4w, 16w ... (w: warmup_updates, or 1) keep only the best quarter."""
    warmup_updates: CountOrZero = 0
    """No trial is pruned before this update."""
    startup_trials: CountOrZero = 4
    """No trial is pruned before this many have completed."""


class SearchConfig(Strict):
    """A search for the best values of some config keys."""

    command: Literal["train-reward", "align-policy"]
    """The command of a trial."""
    config: FilePath
    """The config that every trial starts from."""
    overrides: list[str] = Field(default_factory=list)
    """KEY=VALUE overrides for every trial, for example [stages.0.max_steps=40]."""
    parameters: dict[str, ParameterConfig] = Field(min_length=1)
    """The searched keys: a dotted key of the config, as on the command line, with {low, high}, optionally
    log: true or step, or with {choices: [...]}."""
    objective: ObjectiveConfig
    """The objective by which trials are compared."""
    pruning: PruningConfig | None = None
    """Stop unpromising trials early; null: no pruning."""
    trials: Count = 20
    """Number of trials over all processes and restarts, failed and pruned ones included."""
    timeout: Positive | None = None
    """Seconds after which this process starts no further trial; a running trial is completed."""
    output: FilePath
    """The folder of the search; the run folder of trial N is trials/N in it."""
    seed: Seed = 0
    """Seed of the sampler; the seed of a trial's run is in its config."""
    study: str = "search"
    """Name of the study in the storage, which may hold several."""
    storage: str | None = None
    """SQLAlchemy URL of the storage, in which ${NAME} is an environment variable; null: a SQLite file in
    `output`."""
    launch: list[str] = Field(default_factory=list)
    """Launcher before `-m rlhf.cli`, such as [accelerate, launch]; empty: this Python."""

    @model_validator(mode="after")
    def _output_is_not_searched(self) -> Self:
        keys = [*self.parameters, *(override.partition("=")[0] for override in self.overrides)]
        if "output" in keys:
            raise ValueError(
                "each trial's output is OUTPUT/trials/N; remove `output` from parameters and overrides"
            )
        return self
