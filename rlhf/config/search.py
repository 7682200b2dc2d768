"""What `rlhf search` may be told."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import Count, CountOrZero, FilePath, Number, Positive, Seed, Strict

Direction = Literal["maximize", "minimize"]


class ParameterConfig(Strict):
    """What one searched key may be: a range from `low` to `high`, or one of `choices`."""

    low: Number | None = None
    """Lowest value."""
    high: Number | None = None
    """Highest value."""
    log: bool = False
    """Search by order of magnitude, as for a learning rate."""
    step: Positive | None = None
    """Only low, low + step, low + 2 step, ..."""
    choices: list[Any] | None = Field(default=None, min_length=1)
    """The values themselves, of any kind; each may also be a list."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("choices stand alone, without low, high, log or step")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs low and high, or give choices: [...]")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low must be above 0, found {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot both be given")
        return self


class ObjectiveConfig(Strict):
    """What makes a trial a good one."""

    metric: str
    """A number in a trial's eval.json by its dotted path, such as held_out.overall or difference.gold.mean."""
    direction: Direction = "maximize"
    """Whether more of it is better, or less."""


class PruningConfig(Strict):
    """When a trial that falls behind is stopped early."""

    metric: str
    """A name in a trial's metrics.jsonl, such as validation/accuracy or reward/mean."""
    direction: Direction = "maximize"
    """Whether more of it is better, or less."""
    method: Literal["median", "halving"] = "median"
    """`median`: its best value so far is below the median of the completed trials at the same update; `halving`: at updates w, 4w, 16w ... (w: warmup_updates, or 1) only the best quarter goes on."""
    warmup_updates: CountOrZero = 0
    """No trial is stopped before this update."""
    startup_trials: CountOrZero = 4
    """No trial is stopped before this many have completed."""


class SearchConfig(Strict):
    """A search for the best values of some config keys."""

    command: Literal["train-reward", "align-policy"]
    """What a trial runs."""
    config: FilePath
    """The config every trial starts from."""
    overrides: list[str] = Field(default_factory=list)
    """KEY=VALUE words for every trial, for example [stages.0.max_steps=40]."""
    parameters: dict[str, ParameterConfig] = Field(min_length=1)
    """What is searched: a dotted key of that config, as on the command line, with {low, high}, and log: true or a step if wanted, or with {choices: [...]}."""
    objective: ObjectiveConfig
    """What is compared."""
    pruning: PruningConfig | None = None
    """Stops hopeless trials early; null lets every trial run to its end."""
    trials: Count = 20
    """Trials in all, over all processes and restarts; failed and stopped ones count."""
    timeout: Positive | None = None
    """Seconds after which this process starts no further trial; the one that runs ends."""
    output: FilePath
    """The folder of the search; a trial's run folder is trials/N in it."""
    seed: Seed = 0
    """Seed of the proposals; the seed of a trial's run stands in its own config."""
    study: str = "search"
    """The search's name in the storage, which may hold several."""
    storage: str | None = None
    """Where results are shared: a SQLAlchemy URL, in which ${NAME} is an environment variable; null is a SQLite file in `output`."""
    launch: list[str] = Field(default_factory=list)
    """What stands before `-m rlhf.cli`, such as [accelerate, launch]; empty is this Python."""

    @model_validator(mode="after")
    def _output_is_ours(self) -> Self:
        words = [*self.parameters, *(word.partition("=")[0] for word in self.overrides)]
        if "output" in words:
            raise ValueError(
                "each trial's output is OUTPUT/trials/N; take it out of parameters and overrides"
            )
        return self
