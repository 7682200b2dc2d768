"""Verdicts on the held-out figures of principle models and judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.report.numbers import finite, fixed, percent
from rlhf.report.verdict import Verdict

TITLES = {"principles": "Principle model", "justifications": "Pairwise Justifier"}
"""Page titles, by the key of `data` that identifies the kind of run."""


def title_of(config: Mapping[str, Any]) -> str:
    """The page title of a run that trained a judge or a reward model."""
    data = config.get("data")
    keys = data if isinstance(data, Mapping) else {}
    return next((title for key, title in TITLES.items() if key in keys), "Reward model")


def as_comparisons(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """A principle model's evaluation in the form of a reward model's; other evaluations unchanged."""
    if "majority" not in evaluation:
        return evaluation
    sides = evaluation.get("fulfilled") or {}
    return {
        "overall": evaluation.get("accuracy"),
        "intervals": {"overall": evaluation.get("ci95")},
        "subsets": {
            name: sides[key]
            for key, name in (("yes", "fulfilled"), ("no", "not fulfilled"))
            if isinstance(sides.get(key), Mapping)
        },
        "groups": evaluation.get("groups"),
    }


def own_verdict(evaluation: Mapping[str, Any]) -> Verdict | None:
    """The verdict on a principle model or a judge; None for the evaluation of a reward model."""
    if "majority" in evaluation:
        return _principle_verdict(evaluation)
    return _judge_verdict(evaluation["judge"]) if isinstance(evaluation.get("judge"), Mapping) else None


def _principle_verdict(evaluation: Mapping[str, Any]) -> Verdict:
    share, majority = finite(evaluation.get("accuracy")), finite(evaluation.get("majority"))
    ends = [finite(end) for end in evaluation.get("ci95") or []]
    if share is None or majority is None or len(ends) != 2 or ends[0] is None or ends[1] is None:
        return Verdict("open", "No verdict yet", "The principle model has not been evaluated yet.")
    sentence = (
        f"It is right on {percent(share)} of {evaluation.get('count')} held-out judgements "
        f"(95\N{NO-BREAK SPACE}% interval {fixed(100 * ends[0], 1)} to {fixed(100 * ends[1], 1)})."
    )
    line = f"The majority baseline, always the more frequent answer, is right on {percent(majority)}."
    if ends[0] > majority:
        return Verdict("good", "It learnt to judge", sentence, [line])
    return Verdict("flat", "Not better than the majority baseline", sentence, [line])


def _judge_verdict(judge: Mapping[str, Any]) -> Verdict:
    single = judge.get("one_order")
    requests, unread = finite(judge.get("requests")) or 0, finite(judge.get("unparsed")) or 0
    lines = [f"{unread:,.0f} of {requests:,.0f} texts had no verdict that could be read."] if unread else []
    share = finite(single.get("accuracy")) if isinstance(single, Mapping) else None
    ends = [finite(end) for end in (single.get("ci95") or [])] if isinstance(single, Mapping) else []
    if share is None or len(ends) != 2 or ends[0] is None or ends[1] is None:
        return Verdict("open", "No verdict yet", "No held-out pair has a verdict that could be read.", lines)
    sentence = (
        f"A single verdict, averaged over both orders, prefers the better answer in {percent(share)} of the "
        f"held-out pairs (95\N{NO-BREAK SPACE}% interval {fixed(100 * ends[0], 1)} to "
        f"{fixed(100 * ends[1], 1)}); chance is 50 %."
    )
    agreement = finite(judge.get("order_agreement"))
    if agreement is not None:
        lines.append(f"The two orders of a pair agree on {percent(agreement)} of the pairs.")
    if ends[0] > 0.5:
        return Verdict("good", "It learnt to judge", sentence, lines)
    if ends[1] < 0.5:
        return Verdict("bad", "Worse than chance", sentence, lines)
    return Verdict("flat", "Not better than chance", sentence, lines)
