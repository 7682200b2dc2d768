"""Sources of rewards and their shaping: the keys `reward`, `reward_shaping` and `held_out_reward`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from rlhf.config.judge import JudgeConfig
from rlhf.config.schema import Count, CountOrZero, NonNegative, Number, Place, Positive, ReasoningRule, Strict

RewardKind = Literal["adapter", "classifier", "server", "function", "judge", "ensemble", "principle"]
KINDS: tuple[RewardKind, ...] = get_args(RewardKind)
GOLD = "gold"
"""The function of this name is built in: the gold score."""
RESERVED = ("mean", "std", "shaped", "missing", "held_out", "held_out_agreement")
"""Names of `reward/...` metrics that a source may not have."""
TOKEN_ENV = "RLHF_REWARD_TOKEN"  # noqa: S105 - the name of a variable
SERVER_PROTOCOL = 1
"""Version of the JSON between `rlhf serve-reward` and its clients."""
ONLY_WITH = (
    ("label", "classifier"),
    ("reasoning", "classifier"),
    ("token_env", "server"),
    ("timeout", "server"),
    ("principles", "principle"),
)


class EnsembleConfig(Strict):
    """An ensemble of reward models whose scores are combined into one reward."""

    adapters: Annotated[list[Place], Field(min_length=2)]
    """`final/` folders of `rlhf train-reward`, at least two, for example of different seeds."""
    rule: Literal["mean", "lower-bound", "worst"] = "lower-bound"
    """Mean of the members, mean minus `coefficient` standard deviations, or minimum."""
    coefficient: NonNegative = 1.0
    """With `lower-bound`: number of standard deviations subtracted from the mean."""


def is_header_safe(token: str) -> bool:
    """Whether a token can be sent in an HTTP header unescaped."""
    return token.isascii() and token.isprintable() and " " not in token


class RewardSourceConfig(Strict):
    """A source of rewards: exactly one of `adapter`, `classifier`, `server`, `function`, `judge`, `ensemble`
    and `principle`."""

    adapter: Place | None = None
    """A reward model on the policy's base, whose weights it shares: the `final/` folder of `rlhf
    train-reward`."""
    classifier: Place | None = None
    """A separate reward model: any AutoModelForSequenceClassification with a chat template, or a `final/`
    folder on another base."""
    server: str | None = None
    """Address of a running `rlhf serve-reward`, such as http://127.0.0.1:8800."""
    function: Place | None = None
    """`FILE.py:NAME` or `MODULE:NAME`, with the signature of TRL's reward functions; or `gold`, the built-in
    score of prompts with a check."""
    judge: JudgeConfig | None = None
    """A language model behind an OpenAI-compatible server that judges the answers."""
    ensemble: EnsembleConfig | None = None
    """Several reward models on the policy's base, combined into one reward."""
    principle: Place | None = None
    """A principle model on the policy's base, whose weights it shares: the `final/` folder of `rlhf
    train-principle`."""
    principles: list[str] = Field(default_factory=list)
    """Principle: what responses should satisfy, in words. Several are several rewards, each with `weight`."""
    label: str | None = None
    """Classifier with several outputs: the output that is the reward; null: the first."""
    reasoning: ReasoningRule = "keep"
    """Classifier: what it sees of `<think>` parts of answers: all, nothing, or such answers have no reward. A
    reward model of this project has its own rule, a judge `judge.reasoning`."""
    token_env: str = TOKEN_ENV
    """Server: the environment variable with its token."""
    timeout: Positive = 120.0
    """Server: seconds until a request is retried."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"a reward has exactly one of {', '.join(KINDS)}; found "
                f"{' and '.join(kinds) or 'none of them'}"
            )
        fields = type(self).model_fields
        for key, kind in ONLY_WITH:
            if kind != kinds[0] and getattr(self, key) != fields[key].get_default(call_default_factory=True):
                raise ValueError(f"{key} goes with {kind}, not with {kinds[0]}; remove it")
        if self.principle is not None and (
            not self.principles or any(not principle.strip() for principle in self.principles)
        ):
            raise ValueError(
                "principle needs principles, none of them empty; write principles: ['The response ...']"
            )
        if len(set(self.principles)) < len(self.principles):
            raise ValueError("principles: one of them is there twice; remove it")
        urlsplit(self.server or "")  # a ValueError of its own where an IPv6 address is not closed
        if self.server is not None and not re.fullmatch(r"https?://[^?#@\s]+", self.server):
            raise ValueError(
                f"server: found {self.server!r}; write http://HOST:PORT, and put the token into "
                f"${self.token_env}"
            )
        if self.function not in (None, GOLD) and not re.fullmatch(r"[^:]+:\w+", str(self.function)):
            raise ValueError(f"function: found {self.function!r}; write FILE.py:NAME, MODULE:NAME or {GOLD}")
        return self

    @property
    def kind(self) -> RewardKind:
        """The kind of source."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def place(self) -> str:
        """The folder, model, address or function; for a judge or an ensemble, a description."""
        if self.judge is not None:
            return f"{self.judge.model} at {self.judge.url}"
        if self.ensemble is not None:
            return f"{self.ensemble.rule} of {', '.join(self.ensemble.adapters)}"
        if self.principle is not None:
            return f"{self.principle} by {len(self.principles)} principles"
        return str(getattr(self, self.kind))

    def words(self) -> str:
        """Kind and place: `adapter runs/reward/final`."""
        return f"{self.kind} {self.place}"


class RewardSource(RewardSourceConfig):
    """One term of the sum of rewards."""

    weight: Number = 1.0
    """Factor in the sum; 0 only logs the reward."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """Name of its metric, reward/NAME, if there are several sources. null: the function's name, else the
    kind."""


class HeldOutReward(RewardSourceConfig):
    """A source of rewards that the policy is not trained on."""

    every: Count = 1
    """Updates between two scorings of the training answers; held-out prompts are always scored, before and
    after."""


class LengthPenalty(Strict):
    """Length penalty: `per_token * max(0, tokens - above)` is subtracted from the reward."""

    per_token: Positive
    """Penalty per token, the end-of-turn token included."""
    above: CountOrZero = 0
    """Tokens without a penalty."""


class ShapingConfig(Strict):
    """Reward shaping, in this order: normalisation, clipping, length penalty."""

    normalise: Literal["none", "batch", "running", "each"] = "none"
    """(reward - mean) / standard deviation over the answers of the update (`batch`), over all answers so far
    (`running`), or of each source over the answers to one prompt before summation (`each`, GDPO)."""
    clip: tuple[Number, Number] | None = None
    """Lowest and highest reward, applied after `normalise`; null: no bounds."""
    length_penalty: LengthPenalty | None = None
    """Subtracted after `clip`; null: none."""
    missing: Literal["error", "drop"] = "error"
    """An answer whose reward could not be computed: `error` stops the run, `drop` leaves it out of the update
    and counts it in reward/missing."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Self:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip: found {list(self.clip)}; write [lowest, highest], as in [-5, 5]")
        return self

    @property
    def active(self) -> bool:
        """Whether shaping changes the reward."""
        return self.normalise != "none" or self.clip is not None or self.length_penalty is not None


def _as_list(value: Any) -> Any:
    """A folder, a source, or a list of either, as a list of sources."""
    items = value if isinstance(value, list | tuple) else [value]
    return [_as_source(item) for item in items]


def _as_source(value: Any) -> Any:
    """A text as the adapter's folder.

    Raises:
        ValueError: the text has the form of another kind of source.
    """
    if not isinstance(value, str):
        return value
    if value == GOLD or re.fullmatch(r".+\.py:\w+", value):
        raise ValueError(f"found {value!r}, a function; write {{function: {value}}}")
    if value.startswith(("http://", "https://")):
        raise ValueError(f"found {value!r}, a server; write {{server: {value!r}}}")
    return {"adapter": value}


def _serialize(sources: Sequence[RewardSource]) -> Any:
    """A single adapter without options becomes its folder again, as most configs have it."""
    only = sources[0]
    if len(sources) == 1 and only.adapter is not None and only == RewardSource(adapter=only.adapter):
        return only.adapter
    return [source.model_dump(mode="json") for source in sources]


Sources = Annotated[
    list[RewardSource], BeforeValidator(_as_list), PlainSerializer(_serialize, when_used="json")
]
HeldOut = Annotated[HeldOutReward | None, BeforeValidator(_as_source)]


def names_of(sources: Sequence[RewardSource]) -> list[str]:
    """The metric names of the sources: `name`, else the function's name, else the kind; repeated kinds are
    numbered."""
    names: list[str] = []
    for source in sources:
        plain = source.name or (source.place.rpartition(":")[2] if source.kind == "function" else source.kind)
        number = 2
        name = plain
        while source.name is None and name in (*names, *RESERVED):
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def check_names(sources: Sequence[RewardSource]) -> None:
    """Check that metric names are unique and not reserved.

    Raises:
        ValueError: a name is repeated or reserved.
    """
    names = names_of(sources)
    for name in names:
        if name in RESERVED:
            raise ValueError(
                f"reward: found the name {name!r}; reward/{name} is a built-in metric: choose another name"
            )
        if names.count(name) > 1:
            raise ValueError(f"reward: found the name {name!r} twice; choose different names")
