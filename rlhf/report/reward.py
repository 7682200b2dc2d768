"""The content of a reward model's page: verdict, table, dropped rows, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.core.statistics import wilson_interval
from rlhf.report.drawing.charts import Chart, Mark, line_chart
from rlhf.report.drawing.series import Series
from rlhf.report.files import RunFiles
from rlhf.report.judgements import as_comparisons, own_verdict
from rlhf.report.numbers import DASH, finite, fixed, percent, signed
from rlhf.report.verdict import Verdict

IMPLICIT = "The policy's implicit reward"
BAR_LEFT, BAR_RIGHT = 4.0, 196.0


@dataclass(frozen=True, slots=True)
class Bar:
    """Positions on a bar from 0 to 100 %: the accuracy, its interval, the length baseline (None: unknown)."""

    at: float
    low: float | None
    high: float | None
    baseline: float | None


@dataclass(frozen=True, slots=True)
class SubsetRow:
    """One row of the table, as text."""

    name: str
    accuracy: str
    interval: str
    count: str
    baseline: str
    bar: Bar
    total: bool = False


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy, its number of comparisons and 95 % interval, and the accuracy of the longer answer."""

    name: str
    share: float
    count: int | None
    interval: tuple[float, float] | None
    baseline: float | None


def accuracies(subsets: Any, intervals: Any = None) -> list[Accuracy]:
    """`{name: {"accuracy", "count", "ci95", "length_baseline"}}` or `{name: accuracy}`, in the file's order.

    A missing interval is computed if the count is known.
    """
    rows = []
    for name, value in (subsets or {}).items():
        entry = value if isinstance(value, Mapping) else {"accuracy": value}
        share, count = finite(entry.get("accuracy")), int(finite(entry.get("count")) or 0) or None
        if share is not None:
            interval = _interval(entry.get("ci95") or (intervals or {}).get(name), share, count)
            rows.append(Accuracy(name, share, count, interval, finite(entry.get("length_baseline"))))
    return rows


def overall(evaluation: Mapping[str, Any]) -> Accuracy | None:
    """All comparisons; a missing interval is computed only if the subsets pool to this figure."""
    share = finite(evaluation.get("overall"))
    if share is None:
        return None
    subsets = accuracies(evaluation.get("subsets"))
    total = sum(subset.count or 0 for subset in subsets)
    right = sum(subset.share * (subset.count or 0) for subset in subsets)
    pooled = total > 0 and abs(right / total - share) < 0.0005
    given = (evaluation.get("intervals") or {}).get("overall")
    interval = _interval(given, share, total if pooled else None)
    return Accuracy("Overall", share, total or None, interval, finite(evaluation.get("length_baseline")))


def _interval(given: Any, share: float, count: int | None) -> tuple[float, float] | None:
    if given:
        low, high = (finite(end) for end in given)
        return None if low is None or high is None else (low, high)
    if not count:
        return None
    low, high = wilson_interval(share, count)
    return low, high


def reward_table(evaluation: Mapping[str, Any]) -> list[tuple[str, list[SubsetRow]]]:
    """Titled groups of rows: all together, sections, subsets."""
    evaluation = as_comparisons(evaluation)
    everything, held_out = overall(evaluation), evaluation.get("held_out") or {}
    groups = [
        ("", [everything] if everything else []),
        (
            "Sections",
            accuracies(evaluation.get("sections"), (evaluation.get("intervals") or {}).get("sections")),
        ),
        ("Subsets", accuracies(evaluation.get("subsets"))),
        ("By length of the better answer", _lengths(evaluation)),
        ("By strength of the preference", _strengths(evaluation)),
        *((f"By {name}", rows) for name, rows in _by_group(evaluation)),
        ("Held out from training, by source", accuracies(held_out.get("subsets"))),
        ("Held out, by strength of the preference", _strengths(held_out)),
        *((f"Held out, by {name}", rows) for name, rows in _by_group(held_out)),
    ]
    return [(title, [_row(accuracy, total=not title) for accuracy in rows]) for title, rows in groups if rows]


def _lengths(evaluation: Mapping[str, Any]) -> list[Accuracy]:
    """Accuracy if the better answer is the shorter or the longer one, and the mean of both."""
    lengths = dict(evaluation.get("lengths") or {})
    both = lengths.pop("controlled", None)
    rows = accuracies({name: part for name, part in lengths.items() if name != "same"})
    return [*rows, *accuracies({"mean of the two": both})] if len(rows) > 1 else []


def _strengths(evaluation: Mapping[str, Any]) -> list[Accuracy]:
    """One row per strength; none if all preferences are equally strong."""
    rows = accuracies(evaluation.get("strengths"))
    return rows if len(rows) > 1 else []


def _by_group(evaluation: Mapping[str, Any]) -> list[tuple[str, list[Accuracy]]]:
    """One row per value of a group, such as domain or language; none where all pairs have the same value."""
    tables = [(name, accuracies(values)) for name, values in (evaluation.get("groups") or {}).items()]
    return [(name, rows) for name, rows in tables if len(rows) > 1]


def length_correlation(evaluation: Mapping[str, Any]) -> str:
    """Correlation of reward and length within pairs, signed; empty if unknown."""
    correlation = finite(evaluation.get("length_correlation"))
    return "" if correlation is None else signed(correlation, 2)


def _row(accuracy: Accuracy, *, total: bool) -> SubsetRow:
    low, high = accuracy.interval or (None, None)

    def place(share: float | None) -> float | None:
        return None if share is None else round(BAR_LEFT + share * (BAR_RIGHT - BAR_LEFT), 1)

    return SubsetRow(
        name=accuracy.name,
        accuracy=percent(accuracy.share),
        interval="" if low is None or high is None else f"{fixed(100 * low, 1)}{DASH}{fixed(100 * high, 1)}",
        count=f"{accuracy.count:,}" if accuracy.count else "",
        baseline="" if accuracy.baseline is None else percent(accuracy.baseline),
        bar=Bar(place(accuracy.share) or BAR_LEFT, place(low), place(high), place(accuracy.baseline)),
        total=total,
    )


def reward_verdict(evaluation: Mapping[str, Any], subject: str = "The reward model") -> Verdict:
    """The verdict: better than chance, and than always preferring the longer answer?

    Args:
        subject: what is judged, as the sentence begins.
    """
    if (special := own_verdict(evaluation)) is not None:
        return special
    accuracy = overall(evaluation)
    if accuracy is None:
        return Verdict(
            "open", "No verdict yet", f"{subject} has not been evaluated on held-out comparisons yet."
        )
    sentence = f"{subject} picks the better answer in {percent(accuracy.share)} of "
    sentence += f"{accuracy.count:,} held-out comparisons" if accuracy.count else "the held-out comparisons"
    if accuracy.interval is None:
        return Verdict("open", "Accuracy", f"{sentence}.", _baseline(accuracy))
    low, high = accuracy.interval
    sentence += f" (95\N{NO-BREAK SPACE}% interval {fixed(100 * low, 1)} to {fixed(100 * high, 1)})"
    if high < 0.5:
        return Verdict(
            "bad", "Worse than chance", f"{sentence}: it prefers the worse answers.", _baseline(accuracy)
        )
    if low <= 0.5:
        return Verdict(
            "flat",
            "Not better than chance",
            f"{sentence}: no measurable difference from a coin.",
            _baseline(accuracy),
        )
    if accuracy.baseline is not None and low <= accuracy.baseline:
        return Verdict("flat", "Not better than length", f"{sentence}.", _baseline(accuracy))
    return Verdict("good", "It learnt to judge", f"{sentence}.", _baseline(accuracy))


def _baseline(accuracy: Accuracy) -> list[str]:
    if accuracy.baseline is None:
        return []
    gap = 100 * (accuracy.share - accuracy.baseline)
    start = f"Always taking the longer answer would be right in {percent(accuracy.baseline)}"
    if accuracy.interval and accuracy.interval[0] <= accuracy.baseline <= accuracy.interval[1]:
        return [f"{start}: the model does not measurably differ from that."]
    return [
        f"{start}: the model is {fixed(abs(gap), 1)} points {'better' if gap > 0 else 'worse'} than that."
    ]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The rows read and kept, and for each reason the number of dropped rows and the first places."""

    read: str
    kept: str
    reasons: Sequence[tuple[str, str, str]]


def dropped(drops: Mapping[str, Any]) -> Dropped | None:
    """`{"read", "kept", "dropped": {reason: {"count", "examples"}}}` as text, the largest count first."""
    if not drops:
        return None
    counts = [
        (reason, _whole(entry.get("count")), entry.get("examples") or [])
        for reason, entry in (drops.get("dropped") or {}).items()
    ]
    counts.sort(key=lambda entry: -entry[1])
    reasons = [(reason, f"{count:,}", ", ".join(map(str, places))) for reason, count, places in counts]
    return Dropped(f"{_whole(drops.get('read')):,}", f"{_whole(drops.get('kept')):,}", reasons)


def _whole(value: Any) -> int:
    return int(finite(value) or 0)


def stages(run: RunFiles) -> list[Mark]:
    """The first step of each stage; none if the run has a single stage."""
    marks: list[Mark] = []
    for row in run.metrics:
        name = row.get("stage")
        if isinstance(name, str) and (not marks or marks[-1].label != name):
            marks.append(Mark(row["step"], name))
    return marks if len(marks) > 1 else []


def reward_charts(run: RunFiles) -> tuple[list[Chart], set[str]]:
    """The curves, and the names of the metrics they show."""
    shown: set[str] = {"stage"}
    starts = stages(run)

    def draw(
        title: str, unit: str, names: Mapping[str, str], *, exact: bool = False, **options: Any
    ) -> Chart | None:
        shown.update(names)
        series = [Series(label, run.values(name), exact) for name, label in names.items()]
        return line_chart(title, unit, series, span=run.span, stages=starts, **options)

    right = {"validation/accuracy": "held-out pairs", "reward/accuracy": "training pairs"}
    lost = {"validation/loss": "loss", "validation/mse": "squared error of the ratings"}
    by_term = any(name in row for row in run.metrics for name in ("loss/regression", "loss/bt"))
    charts = [
        draw("Accuracy", "pairs judged right", right, share=True, levels=[Mark(0.5, "chance")]),
        draw(
            "Margin",
            "reward, chosen \N{MINUS SIGN} rejected",
            {"reward/margin": "margin"},
            levels=[Mark(0, "")],
        ),
        draw("Regression loss", "squared error of the ratings", {"loss/regression": "regression"}, zero=True),
        draw("Preference loss", "Bradley\N{EN DASH}Terry, nats", {"loss/bt": "preference"}, zero=True),
        None if by_term else draw("Training loss", "", {"loss/total": "loss"}),
        draw("Validation loss", "on held-out rows", lost),
        draw("Learning rate", "", {"optimizer/lr": "learning rate"}, zero=True, exact=True),
    ]
    return [chart for chart in charts if chart], shown
