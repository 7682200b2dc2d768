"""Where rewards come from, and what the algorithm makes of them: `reward`, `reward_shaping`, `held_out_reward`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from rlhf.config.judge import JudgeConfig
from rlhf.config.schema import Count, CountOrZero, NonNegative, Number, Place, Positive, Strict

Kind = Literal["adapter", "classifier", "server", "function", "judge", "ensemble"]
KINDS: tuple[Kind, ...] = ("adapter", "classifier", "server", "function", "judge", "ensemble")
GOLD = "gold"
"""The function of this name is the project's own: the gold score."""
TAKEN = ("mean", "std", "shaped", "missing", "held_out", "held_out_agreement")
"""Names that `reward/...` has in the log already."""
TOKEN_ENV = "RLHF_REWARD_TOKEN"  # noqa: S105 - the name of a variable
SERVER_PROTOCOL = 1
"""What `rlhf serve-reward` and its clients speak; a change of their JSON counts it up."""
ONLY_WITH = (("label", "classifier"), ("token_env", "server"), ("timeout", "server"))


class EnsembleConfig(Strict):
    """Several reward models that score every answer, combined into one reward."""

    adapters: Annotated[list[Place], Field(min_length=2)]
    """`final/` folders of `rlhf train-reward`, at least two, for example of different seeds."""
    rule: Literal["mean", "lower-bound", "worst"] = "lower-bound"
    """Mean over the members, mean less `coefficient` times their standard deviation, or the lowest of them."""
    coefficient: NonNegative = 1.0
    """Of `lower-bound`: standard deviations taken off the mean."""


def is_header_safe(token: str) -> bool:
    """Whether a token can be sent in an HTTP header as it stands."""
    return token.isascii() and token.isprintable() and " " not in token


class Source(Strict):
    """A source of rewards: one of `adapter`, `classifier`, `server`, `function`, `judge` and `ensemble`."""

    adapter: Place | None = None
    """A reward model on the policy's own base: the `final/` folder of `rlhf train-reward`. Shares the base's weights."""
    classifier: Place | None = None
    """A reward model with weights of its own: any AutoModelForSequenceClassification with a chat template, or a `final/` folder on another base."""
    server: str | None = None
    """Address of a running `rlhf serve-reward`, such as http://127.0.0.1:8800."""
    function: Place | None = None
    """`FILE.py:NAME` or `MODULE:NAME`, called as TRL calls a reward function; or `gold`, the check of a prompt that has one."""
    judge: JudgeConfig | None = None
    """A language model behind an OpenAI-compatible server that judges the answers."""
    ensemble: EnsembleConfig | None = None
    """Several reward models on the policy's own base, as one reward."""
    label: str | None = None
    """Of a classifier with several outputs, the one that is the reward; null is the first."""
    token_env: str = TOKEN_ENV
    """Of a server: the environment variable that holds its token."""
    timeout: Positive = 120.0
    """Of a server: seconds to wait for an answer before it is asked again."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        told = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(told) != 1:
            raise ValueError(
                f"a reward has one of {', '.join(KINDS)}; found {' and '.join(told) or 'none of them'}"
            )
        fields = type(self).model_fields
        for key, kind in ONLY_WITH:
            if kind != told[0] and getattr(self, key) != fields[key].default:
                raise ValueError(f"{key} goes with {kind}, not with {told[0]}")
        if self.server is not None and not re.fullmatch(r"https?://[^?#@\s]+", self.server):
            raise ValueError(
                f"server: found {self.server!r}; write http://HOST:PORT, and put the token into ${self.token_env}"
            )
        if self.function not in (None, GOLD) and not re.fullmatch(r"[^:]+:\w+", str(self.function)):
            raise ValueError(f"function: found {self.function!r}; write FILE.py:NAME, MODULE:NAME or {GOLD}")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def place(self) -> str:
        """The folder, model, address or function; of a judge or an ensemble, what it consists of."""
        if self.judge is not None:
            return f"{self.judge.model} at {self.judge.url}"
        if self.ensemble is not None:
            return f"{self.ensemble.rule} of {', '.join(self.ensemble.adapters)}"
        return str(getattr(self, self.kind))

    def words(self) -> str:
        """For people: `adapter runs/reward/final`."""
        return f"{self.kind} {self.place}"


class RewardSource(Source):
    """One of the rewards that are added up."""

    weight: Number = 1.0
    """What it is multiplied by before it is added; 0 only logs it."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """What it is called in the log, where there are several: reward/NAME. Null: the function's name, else its kind."""


class HeldOutReward(Source):
    """A second opinion that the policy never learns from."""

    every: Count = 1
    """Updates between two looks at an update's answers; the held-out prompts are always looked at, before and after."""


class LengthPenalty(Strict):
    """What long answers cost."""

    per_token: Positive
    """Taken from the reward for each token, end of answer included."""
    above: CountOrZero = 0
    """Tokens that cost nothing."""


class ShapingConfig(Strict):
    """What the algorithm is given in place of the bare reward: normalised, then clipped, then charged for length."""

    normalise: Literal["none", "batch", "running", "each"] = "none"
    """(reward - mean) / standard deviation: of the update's answers, of all answers so far, or of each of several
    rewards over the answers to one prompt before they are added up (GDPO)."""
    clip: tuple[Number, Number] | None = None
    """Lowest and highest reward, after `normalise`; null is no bound."""
    length_penalty: LengthPenalty | None = None
    """Taken off after `clip`; null is none."""
    missing: Literal["error", "drop"] = "error"
    """An answer whose reward could not be computed ends the run, or is left out of the update and counted in reward/missing; it is never 0."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Self:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip: found {list(self.clip)}; write [lowest, highest], as in [-5, 5]")
        return self

    @property
    def active(self) -> bool:
        """Whether the algorithm is given anything else than the bare reward."""
        return self.normalise != "none" or self.clip is not None or self.length_penalty is not None


def _as_list(told: Any) -> Any:
    """A folder, a source, or a list of either."""
    items = told if isinstance(told, list | tuple) else [told]
    return [_as_source(item) for item in items]


def _as_source(told: Any) -> Any:
    return {"adapter": told} if isinstance(told, str) else told


def _as_told(sources: Sequence[RewardSource]) -> Any:
    """The common case is written as it is read: one folder."""
    only = sources[0]
    if len(sources) == 1 and only.adapter is not None and only == RewardSource(adapter=only.adapter):
        return only.adapter
    return [source.model_dump(mode="json") for source in sources]


Sources = Annotated[
    list[RewardSource], BeforeValidator(_as_list), PlainSerializer(_as_told, when_used="json")
]
HeldOut = Annotated[HeldOutReward | None, BeforeValidator(_as_source)]


def names_of(sources: Sequence[RewardSource]) -> list[str]:
    """What each is called in the log: its own name, else its function's or its kind's; a second of a kind is numbered."""
    names: list[str] = []
    for source in sources:
        plain = source.name or (source.place.rpartition(":")[2] if source.kind == "function" else source.kind)
        number = 2
        name = plain
        while source.name is None and name in (*names, *TAKEN):
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def check_names(sources: Sequence[RewardSource]) -> None:
    """Make sure that each reward has a name of its own in the log.

    Raises:
        ValueError: two have the same, or one has a name that is taken.
    """
    names = names_of(sources)
    for name in names:
        if name in TAKEN:
            raise ValueError(f"reward: the name {name!r} is taken; reward/{name} is in the log already")
        if names.count(name) > 1:
            raise ValueError(f"reward: the name {name!r} stands twice; give each `name` once")
