"""The content of a policy's page: figures before and after, curves, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from rlhf.report.drawing.charts import Chart, Mark, line_chart, stacked_chart
from rlhf.report.drawing.scales import Scale
from rlhf.report.drawing.series import Series
from rlhf.report.files import RunFiles
from rlhf.report.numbers import finite, fixed, signed
from rlhf.report.verdict import Change, change

SAMPLES_SHOWN = 6
QUANTITIES = {
    "reward": ("Reward", "points"),
    "held_out": ("Held-out reward", "points"),
    "gold": ("Gold score", "0 to 1"),
    "kl": ("KL", "nats per answer"),
    "length": ("Length", "tokens"),
    "finished": ("Finished", "share of answers"),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity before and after; `bar` is zero, the mean and the interval as coordinates of 0 to 240."""

    name: str
    unit: str
    change: Change
    bar: tuple[float, float, float, float] | None


def compared(evaluation: Mapping[str, Any]) -> list[Compared]:
    """The quantities that were measured before and after."""
    changes = [(*label, change(evaluation, key)) for key, label in QUANTITIES.items()]
    return [
        Compared(name, unit, difference, _bar(difference)) for name, unit, difference in changes if difference
    ]


def _bar(difference: Change) -> tuple[float, float, float, float] | None:
    if difference.low is None or difference.high is None:
        return None
    reach = 1.1 * max(abs(difference.low), abs(difference.high), abs(difference.mean)) or 1.0
    scale = Scale(-reach, reach, 4, 236)
    return scale(0.0), scale(difference.mean), scale(difference.low), scale(difference.high)


@dataclass(frozen=True, slots=True)
class Side:
    """One answer with its figures as text."""

    text: str
    finished: bool | None
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A prompt, its answers before and after, and the change by which pairs are ranked (None: unknown)."""

    prompt: Sequence[tuple[str, str]]
    before: Side
    after: Side
    reward: float | None
    gold: float | None

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """Name, signed change and direction, for the head of the card."""
        scores = (("gold", self.gold), ("reward", self.reward))
        return [(name, signed(value, 2), _direction(value)) for name, value in scores if value is not None]


def _direction(value: float) -> str:
    return "better" if value > 0 else "worse" if value < 0 else "same"


def pairs(evaluation: Mapping[str, Any]) -> list[BeforeAfter]:
    """The answers before and after, largest gain first: by gold score if there is one, then by reward."""
    result = []
    for row in evaluation.get("answers") or []:
        before, after = row.get("before") or {}, row.get("after") or {}
        reward, gold = (_difference(before.get(name), after.get(name)) for name in ("reward", "gold"))
        result.append(BeforeAfter(turns(row.get("prompt")), side(before), side(after), reward, gold))
    return sorted(result, key=_rank)


def _rank(pair: BeforeAfter) -> tuple[bool, float, bool, float]:
    """The sort key of a pair: unknown changes are last."""
    return pair.gold is None, -(pair.gold or 0.0), pair.reward is None, -(pair.reward or 0.0)


def tally(compared_pairs: Sequence[BeforeAfter]) -> dict[str, int]:
    """Number of answers that became better, equal and worse: by gold score if any has one, else by reward."""
    name = "gold" if any(pair.gold is not None for pair in compared_pairs) else "reward"
    values = [value for pair in compared_pairs if (value := getattr(pair, name)) is not None]
    return {word: sum(_direction(value) == word for value in values) for word in ("better", "same", "worse")}


def _difference(before: Any, after: Any) -> float | None:
    low, high = finite(before), finite(after)
    return None if low is None or high is None else round(high - low, 6)


def turns(prompt: Any) -> list[tuple[str, str]]:
    """The messages of a prompt as (role, content); a plain string is the user's."""
    if isinstance(prompt, str):
        return [("user", prompt)]
    return [(str(turn.get("role", "")), str(turn.get("content", ""))) for turn in prompt or []]


def side(row: Mapping[str, Any]) -> Side:
    """An answer with its figures as text."""
    facts = []
    for key, name, decimals in (
        ("reward", "reward", 2),
        ("held_out", "held-out reward", 2),
        ("gold", "gold", 2),
        ("kl", "KL", 2),
        ("length", "tokens", 0),
    ):
        value = finite(row.get(key))
        if value is not None:
            facts.append((name, fixed(value, decimals)))
    finished = row.get("finished")
    return Side(str(row.get("answer", "")), None if finished is None else bool(finished), facts)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Answers sampled in one step of training, from the lowest reward to the highest."""

    step: int
    total: int
    shown: Sequence[tuple[Sequence[tuple[str, str]], Side]]


def sampled(run: RunFiles) -> list[Sampled]:
    """A few answers of the first and the last step, evenly spaced over the range of rewards."""
    steps = []
    for step, rows in run.samples.items():
        ordered = sorted(rows, key=lambda row: finite(row.get("reward")) or 0.0)
        count = min(SAMPLES_SHOWN, len(ordered))
        chosen = [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]
        steps.append(Sampled(step, len(rows), [(turns(row.get("prompt")), side(row)) for row in chosen]))
    return steps


class Curves(NamedTuple):
    """A chart of metrics over steps."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    """Names in metrics.jsonl with their labels."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Of `line_chart`."""


ZERO = (Mark(0.0, ""),)
MISSING = Curves("Answers without a reward", "of a step, left out", {"reward/missing": "missing"})
ENGINE = Curves(
    "Engine against trainer",
    "nats, difference of log-probabilities",
    {"engine/logprob_difference": "mean", "engine/logprob_difference_max": "largest"},
    {"log": True},
)
TIME = {"time/rollout": "rollout", "time/score": "score", "time/update": "update", "time/sync": "sync"}
GRADIENT_NORM = Curves("Gradient norm", "before clipping", {"optimizer/grad_norm": "norm"}, {"zero": True})
CURVES = (
    Curves("Reward", "mean of a step's answers, points", {"reward/mean": "reward"}),
    Curves("Held-out reward", "points, by a reward it does not learn from", {"reward/held_out": "held-out"}),
    Curves(
        "Agreement with the held-out reward",
        "share of pairs of answers to one prompt that both order alike",
        {"reward/held_out_agreement": "agreement"},
        {"share": True, "levels": (Mark(0.5, "chance"),)},
    ),
    Curves(
        "Position bias of the judge",
        "points for the answer shown first",
        {"judge/position_bias": "bias"},
        {"levels": ZERO},
    ),
    Curves(
        "Order agreement of the judge",
        "share of pairs that both orders decide alike",
        {"judge/order_agreement": "agreement"},
        {"share": True},
    ),
    Curves(
        "Spread of the ensemble",
        "standard deviation over its reward models, points",
        {"reward/spread": "spread"},
        {"zero": True},
    ),
    MISSING,
    Curves("Gold score", "mean, answers checked by code", {"gold/mean": "gold"}),
    Curves("KL per token", "nats, two estimates", {"kl/mean": "k1", "kl/k3_mean": "k3"}, {"levels": ZERO}),
    Curves("KL per answer", "nats, summed over its tokens", {"kl/sum": "k1"}, {"levels": ZERO}),
    Curves("Length", "tokens, mean", {"length/mean": "length"}, {"zero": True}),
    Curves(
        "Finished answers",
        "share within the token limit",
        {"length/finished_share": "finished"},
        {"share": True},
    ),
    Curves("Entropy", "nats per token", {"policy/entropy": "entropy"}, {"zero": True}),
    Curves("Value", "points of the return", {"return/mean": "observed", "value/mean": "predicted"}),
    Curves(
        "Explained variance of the critic",
        "share of the variance of the return",
        {"value/explained_variance": "explained"},
        {"levels": ZERO},
    ),
    Curves(
        "Clipped",
        "share of ratios, of values",
        {"ratio/clipped_share": "ratios", "value/clipped_share": "values"},
        {"share": True},
    ),
    ENGINE,
)


def policy_charts(run: RunFiles) -> tuple[list[Chart], set[str]]:
    """The curves, and the names of the metrics they show."""
    bound = finite((run.config.get("rollouts") or {}).get("logprob_bound"))
    stop = [Mark(bound, "a mean above this stops the run")] if bound else []
    lost = any(value for _, value in run.values("reward/missing"))

    def series(metrics: Mapping[str, str]) -> list[Series]:
        return [Series(label, run.values(name)) for name, label in metrics.items()]

    def draw(curves: Curves) -> Chart | None:
        if curves is MISSING and not lost:
            return None  # all zeros
        options = {**curves.options, **({"levels": stop} if curves is ENGINE else {})}
        return line_chart(curves.title, curves.unit, series(curves.metrics), span=run.span, **options)

    time = stacked_chart("Time", "seconds a step", _time(run, series(TIME)), span=run.span)
    charts = [*map(draw, CURVES), time, draw(GRADIENT_NORM)]
    shown = {name for curves in (*CURVES, GRADIENT_NORM) for name in curves.metrics} | set(TIME)
    return [chart for chart in charts if chart], shown


def _time(run: RunFiles, series: list[Series]) -> list[Series]:
    """The parts of a step's time, and the remainder."""
    known = [dict(curve.points) for curve in series if curve.points]
    if not known:
        return []
    rest = [
        (step, max(0.0, whole - sum(at[step] for at in known)))
        for step, whole in run.values("time/step")
        if all(step in at for at in known)
    ]
    return [*series, Series("other", rest)] if any(value > 0.05 for _, value in rest) else series
