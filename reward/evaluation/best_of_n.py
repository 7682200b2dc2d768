"""The quality of the best-of-n answer by a reward model, beside a random pick and the best possible one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.core.statistics import bootstrap_means


@dataclass(frozen=True, slots=True)
class Rated:
    """Rewards, true scores and lengths in characters of a prompt's answers, in the same order."""

    rewards: tuple[float, ...]
    scores: tuple[float, ...]
    lengths: tuple[float, ...] = ()


def expected_pick(rewards: Sequence[float], scores: Sequence[float], n: int) -> float:
    """The mean true score of the answer of highest reward among n, over all subsets of n of the N answers.

    With the answers in rising order of reward, number i (from 1) is the best of C(i - 1, n - 1) subsets:

        sum_{i=n}^{N} C(i - 1, n - 1) / C(N, n) score_i

    An unbiased estimate of the best of n fresh answers, as all subsets are equally likely. Answers with equal
    rewards get their mean score, as the pick among them is random.

    Source: Hilton and Gao (2022), "Measuring Goodhart's law", after Nakano et al. (2021), arXiv 2112.09332.

    Raises:
        ValueError: n is not in 1..N, or rewards and scores differ in number.
    """
    if not 1 <= n <= len(rewards):
        raise ValueError(f"n is {n} of {len(rewards)} answers")
    pairs = sorted(zip(rewards, scores, strict=True))
    shared: list[float] = []
    for _, tied in itertools.groupby(pairs, key=lambda pair: pair[0]):
        of_tied = [score for _, score in tied]
        shared += [math.fsum(of_tied) / len(of_tied)] * len(of_tied)
    subsets = math.comb(len(pairs), n)
    return math.fsum(math.comb(i, n - 1) / subsets * score for i, score in enumerate(shared))


def best_of_n_curve(rated: Sequence[Rated]) -> list[dict[str, Any]]:
    """The mean true score of the picks for n = 1, 2, 4, 8, ..., and for the largest number of answers.

    Each n takes the prompts with at least n answers.

    Returns:
        `[{"n", **figures}, ...]`, with the figures of `best_of_all`.
    """
    return [
        {"n": n, **_picks([(item, n) for item in rated if len(item.rewards) >= n])}
        for n in sizes_to(max(len(item.rewards) for item in rated))
    ]


def best_of_all(rated: Sequence[Rated]) -> dict[str, Any]:
    """The mean true score of the pick among all answers of each prompt, however many it has.

    Over the same prompts: `random`, the mean score, and `oracle`, the best answer by the true score itself.
    Where all lengths are known, also `longest` and `shortest`, the score of picking by length.

        gain = score - random,   share = gain / (oracle - random), None where all answers are equally good

    Returns:
        `{"prompts", "score", "ci95", "random", "oracle", "gain", "gain_ci95", "share"}`, each mean over
        prompts; intervals by bootstrap over prompts, None for a single one.
    """
    return _picks([(item, len(item.rewards)) for item in rated])


def _picks(items: Sequence[tuple[Rated, int]]) -> dict[str, Any]:
    """The figures of `best_of_all`, with n answers of each prompt."""
    rows = [
        (
            expected_pick(item.rewards, item.scores, n),
            math.fsum(item.scores) / len(item.scores),
            expected_pick(item.scores, item.scores, n),
        )
        for item, n in items
    ]
    length_picks = [
        (
            expected_pick(item.lengths, item.scores, n),
            expected_pick([-length for length in item.lengths], item.scores, n),
        )
        for item, n in items
        if item.lengths
    ]
    score, random, oracle = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    score_interval, gain_interval = bootstrap_means([[(pick, pick - chance) for pick, chance, _ in rows]])
    return {
        "prompts": len(rows),
        "score": score,
        "ci95": score_interval,
        "random": random,
        "oracle": oracle,
        "gain": score - random,
        "gain_ci95": gain_interval,
        "share": (score - random) / (oracle - random) if oracle > random else None,
        **_length_baselines(length_picks, len(rows)),
    }


def _length_baselines(picks: Sequence[tuple[float, float]], prompts: int) -> dict[str, float]:
    if len(picks) < prompts:
        return {}
    longest, shortest = (math.fsum(column) / prompts for column in zip(*picks, strict=True))
    return {"longest": longest, "shortest": shortest}


def pair_accuracy(rated: Sequence[Rated]) -> dict[str, Any]:
    """How often the better of two answers to one prompt has the higher reward; equal rewards are wrong.

    Over all pairs of a prompt's answers whose true scores differ, then the mean over the prompts that have
    such a pair.

    Returns:
        `{"accuracy", "prompts", "ci95"}`; None without such prompts.
    """
    shares = []
    for item in rated:
        answers = zip(item.rewards, item.scores, strict=True)
        right = [
            (reward > other) == (score > worse) and reward != other
            for (reward, score), (other, worse) in itertools.combinations(answers, 2)
            if score != worse
        ]
        if right:
            shares.append(sum(right) / len(right))
    if not shares:
        return {"accuracy": None, "prompts": 0, "ci95": None}
    (interval,) = bootstrap_means([[[share] for share in shares]])
    return {"accuracy": math.fsum(shares) / len(shares), "prompts": len(shares), "ci95": interval}


def sizes_to(highest: int) -> list[int]:
    """The powers of two below `highest`, then `highest`."""
    return [*itertools.takewhile(lambda n: n < highest, (2**power for power in itertools.count())), highest]
