"""Compare two systems: win rate, reward and length, with intervals over prompts.

A judge is whatever gives an answer a number: a reward model, or the gold score. Rewards are compared within a
prompt alone; every answer of one side meets every answer of the other.

Shapes: P prompts, K pairs of answers to the same prompt, over all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reward.evaluation.best_of_n import expected_pick
from rlhf.core.statistics import Floats, bootstrap_means, bootstrap_weights, fit_logistic

ALIKE = 0.1
"""Two answers are of like length when the shorter lacks at most this share of the longer."""
RIDGE = 0.1
"""Penalty on the squares of the two coefficients: they stay finite where one side wins every pair."""


@dataclass(frozen=True, slots=True)
class Matchup:
    """Scores of both systems' answers to one prompt, and their lengths in characters."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    length_a: tuple[int, ...]
    length_b: tuple[int, ...]


def win_share(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of pairs in which system A scores higher; a tie counts half."""
    return math.fsum((x > y) + (x == y) / 2 for x in a for y in b) / (len(a) * len(b))


def versus(matchups: Sequence[Matchup]) -> dict[str, Any]:
    """Compare both systems by one judge; means are over prompts, intervals by bootstrap over prompts.

    Returns:
        `{"prompts", "win_rate", "tie_share", "a", "b", "difference", "length": {"a", "b", "difference"},
        "like_length", "length_controlled"}`, each figure as `{"mean", "ci95"}`; `ci95` is None for a single
        prompt.
    """
    rows = []
    for matchup in matchups:
        mean_a, mean_b, long_a, long_b = map(
            _mean, (matchup.a, matchup.b, matchup.length_a, matchup.length_b)
        )
        ties = _mean([float(x == y) for x in matchup.a for y in matchup.b])
        win = win_share(matchup.a, matchup.b)
        rows.append((win, ties, mean_a, mean_b, mean_a - mean_b, long_a, long_b, long_a - long_b))
    means = np.mean(np.array(rows), axis=0).tolist()
    figures = [
        {"mean": mean, "ci95": interval}
        for mean, interval in zip(means, bootstrap_means([rows]), strict=True)
    ]
    win_rate, ties_, a, b, difference, length_a, length_b, longer = figures
    return {
        "prompts": len(matchups),
        "win_rate": win_rate,
        "tie_share": ties_["mean"],
        "a": a,
        "b": b,
        "difference": difference,
        "length": {"a": length_a, "b": length_b, "difference": longer},
        "like_length": like_length(matchups),
        "length_controlled": length_controlled(matchups),
    }


def like_length(matchups: Sequence[Matchup]) -> dict[str, Any] | None:
    """The win rate over the pairs whose lengths are alike; None where there are none.

        |length A - length B| <= 0.1 max(length A, length B)

    A prompt counts by the number of such pairs it has.
    """
    pairs = _pairs(matchups)
    alike_K = np.abs(pairs.longer_K) <= ALIKE * pairs.longest_K
    if not alike_K.any():
        return None
    prompt_K, wins_K = pairs.prompt_K[alike_K], pairs.wins_K[alike_K]

    def rate(weight_P: Floats) -> float:
        weight_K = weight_P[prompt_K]
        return float((weight_K * wins_K).sum() / weight_K.sum()) if weight_K.any() else math.nan

    rate_and_interval = _with_interval(rate, len(matchups), single=len(set(prompt_K.tolist())) < 2)
    return {"within": ALIKE, "pairs": int(alike_K.sum()), **rate_and_interval}


def length_controlled(matchups: Sequence[Matchup]) -> dict[str, Any]:
    """What the win rate would be at equal lengths, by logistic regression on the difference of lengths.

        P(A wins) = sigmoid(c + s tanh(d / sd(d))),   d = length A - length B,   rate = sigmoid(c)

    A prompt's pairs have the weight 1 together, and a tie is half a win. In the spirit of AlpacaEval's
    length-controlled win rate, without its terms for the instruction and for other models; not comparable
    with its figures.

    Source: Dubois et al. (2024), arXiv 2404.04475; `length_controlled_minimal` in AlpacaEval's
    glm_winrate.py.
    """
    pairs = _pairs(matchups)
    spread = float(pairs.longer_K.std())
    feature_K = np.tanh(pairs.longer_K / spread) if spread else np.zeros_like(pairs.longer_K)

    fit = fit_logistic(feature_K, pairs.wins_K, pairs.weight_K, ridge=RIDGE)

    def rate(weight_P: Floats) -> float:
        weight_K = pairs.weight_K * weight_P[pairs.prompt_K]
        intercept, _ = fit_logistic(feature_K, pairs.wins_K, weight_K, ridge=RIDGE, start=fit)
        return 1 / (1 + math.exp(-intercept))

    return {**_with_interval(rate, len(matchups), single=len(matchups) < 2), "slope": fit[1]}


def kl_bound(n: int) -> float:
    """How far the best of n can be from the model that drew the n, in nats: KL <= log n - (n - 1) / n.

    Source: Stiennon et al. (2020), arXiv 2009.01325, appendix G.3; an upper bound by Beirami et al. (2024),
    arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def reward_limit(rewards: Sequence[Sequence[float]], kl: float) -> float | None:
    """The highest mean reward of any policy at this KL, in nats, to the model that drew the answers.

        limit = mean + s sqrt(2 KL)

    The policy of highest reward at a KL is pi exp(r / beta) / Z. Where the rewards of a prompt's answers are
    normal with the variance s_p^2, it adds s_p^2 / beta to their mean, at a KL of s_p^2 / (2 beta^2). s^2 is
    the mean of s_p^2 over prompts. The best of n has 91 to 93 % of this gain at its `kl_bound` for n = 2 to
    64. Rewards with a heavier upper tail than the normal allow more.

    Args:
        rewards: of each prompt's answers.

    Returns:
        None where a prompt has a single answer.

    Source: the policy is equation 4 of Rafailov et al. (2023), arXiv 2305.18290.
    """
    if min(map(len, rewards)) < 2:
        return None
    mean = np.mean([np.mean(of_prompt) for of_prompt in rewards])
    variance = np.mean([np.var(of_prompt, ddof=1) for of_prompt in rewards])
    return float(mean + np.sqrt(variance * 2 * kl))


def best_of_curve(
    picked_by: Sequence[Sequence[float]],
    judged_by: Mapping[str, Sequence[Sequence[float]]],
    sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """The mean score, by every judge, of the answer of highest reward among n.

    Args:
        picked_by: the rewards of each prompt's answers, of which there are as many as the largest n, or more.
        judged_by: by the judge's name, each prompt's answers' scores in the same order.
        sizes: the n.

    Returns:
        `[{"n", "kl_bound", "limit", NAME: {"mean", "ci95"}, ...}, ...]`; `limit` is the `reward_limit` at the
        bound.
    """
    curve = []
    for n in sizes:
        rows = [
            [expected_pick(rewards, scores[place], n) for scores in judged_by.values()]
            for place, rewards in enumerate(picked_by)
        ]
        intervals = bootstrap_means([rows])
        means = np.mean(np.array(rows), axis=0).tolist()
        figures = {
            name: {"mean": mean, "ci95": interval}
            for name, mean, interval in zip(judged_by, means, intervals, strict=True)
        }
        kl = kl_bound(n)
        curve.append({"n": n, "kl_bound": kl, "limit": reward_limit(picked_by, kl), **figures})
    return curve


@dataclass(frozen=True, slots=True)
class _Pairs:
    prompt_K: npt.NDArray[np.int64]
    wins_K: Floats
    longer_K: Floats
    longest_K: Floats
    weight_K: Floats


def _pairs(matchups: Sequence[Matchup]) -> _Pairs:
    rows = [
        (place, (x > y) + (x == y) / 2, p - q, max(p, q), 1 / (len(matchup.a) * len(matchup.b)))
        for place, matchup in enumerate(matchups)
        for x, p in zip(matchup.a, matchup.length_a, strict=True)
        for y, q in zip(matchup.b, matchup.length_b, strict=True)
    ]
    prompt, *others = (np.array(column) for column in zip(*rows, strict=True))
    wins_K, longer_K, longest_K, weight_K = (column.astype(np.float64) for column in others)
    return _Pairs(prompt.astype(np.int64), wins_K, longer_K, longest_K, weight_K)


def _with_interval(rate: Callable[[Floats], float], prompts: int, *, single: bool) -> dict[str, Any]:
    """A win rate and its bootstrap interval; `rate` takes how often each prompt was drawn."""
    interval = None if single else bootstrap_weights(rate, prompts)
    return {"win_rate": rate(np.ones(prompts)), "ci95": interval}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
