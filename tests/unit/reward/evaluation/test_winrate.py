"""Win rates worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reward.evaluation.winrate import (
    RIDGE,
    Matchup,
    best_of_curve,
    kl_bound,
    length_controlled,
    like_length,
    reward_limit,
    versus,
    win_share,
)


def met(a: list[float], b: list[float], long_a: int = 10, long_b: int = 10) -> Matchup:
    return Matchup(tuple(a), tuple(b), (long_a,) * len(a), (long_b,) * len(b))


def test_every_answer_meets_every_other_and_ties_count_half() -> None:
    assert win_share([1.0], [0.0]) == 1.0
    assert win_share([0.0], [1.0]) == 0.0
    # 2 beats 1, ties 2; 0 loses to both: (1 + 1/2 + 0 + 0) / 4.
    assert win_share([2.0, 0.0], [1.0, 2.0]) == 0.375


def test_versus_takes_means_over_prompts() -> None:
    # Win shares 0.375 and 1: a prompt with more pairs counts no more.
    result = versus([met([2.0, 0.0], [1.0, 2.0], 12, 8), met([5.0], [1.0], 30, 10)])
    assert result["prompts"] == 2
    assert result["win_rate"]["mean"] == pytest.approx((0.375 + 1) / 2)
    assert result["win_rate"]["ci95"] == [0.375, 1.0]  # of two prompts, either may be drawn twice
    assert result["tie_share"] == pytest.approx((0.25 + 0) / 2)
    assert result["a"]["mean"] == pytest.approx((1 + 5) / 2) and result["b"]["mean"] == pytest.approx(
        (1.5 + 1) / 2
    )
    assert result["difference"]["mean"] == pytest.approx((-0.5 + 4) / 2)
    assert result["difference"]["ci95"] == [-0.5, 4.0]
    assert [result["length"][name]["mean"] for name in ("a", "b", "difference")] == [21.0, 9.0, 12.0]


def test_sides_swapped_swap_the_figures() -> None:
    forth = [met([2.0, 0.0], [1.0, 2.0], 12, 8), met([5.0], [1.0], 30, 10), met([0.0], [3.0], 5, 9)]
    back = [Matchup(first.b, first.a, first.length_b, first.length_a) for first in forth]
    first, other = versus(forth), versus(back)
    assert first["win_rate"]["mean"] == pytest.approx(1 - other["win_rate"]["mean"])
    assert first["difference"]["mean"] == pytest.approx(-other["difference"]["mean"])
    controlled, mirrored = first["length_controlled"], other["length_controlled"]
    assert controlled["win_rate"] == pytest.approx(1 - mirrored["win_rate"])
    assert controlled["slope"] == pytest.approx(mirrored["slope"])  # longer is longer, on either side


def test_a_single_prompt_has_no_interval() -> None:
    result = versus([met([1.0], [0.0])])
    assert result["win_rate"] == {"mean": 1.0, "ci95": None}
    assert result["like_length"]["ci95"] is None and result["length_controlled"]["ci95"] is None


def test_like_length_counts_the_pairs_within_a_tenth() -> None:
    # 100 against 90: 10 <= 0.1 x 100, alike. 100 against 89: not.
    rows = [met([1.0], [0.0], 100, 90), met([0.0], [1.0], 90, 100), met([0.0], [1.0], 100, 89)]
    result = like_length(rows)
    assert result is not None
    assert (result["pairs"], result["win_rate"]) == (2, 0.5)
    assert like_length([met([1.0], [0.0], 100, 50)]) is None


def test_length_control_takes_the_length_out() -> None:
    """The longer answer wins four times in five, and A's is the longer one in three of four prompts."""
    longer, shorter = (200, 100), (100, 200)
    rows = [met([1.0], [0.0], *longer)] * 24 + [met([0.0], [1.0], *longer)] * 6
    rows += [met([1.0], [0.0], *shorter)] * 2 + [met([0.0], [1.0], *shorter)] * 8
    assert versus(rows)["win_rate"]["mean"] == pytest.approx(3 / 4 * 4 / 5 + 1 / 4 * 1 / 5)
    result = length_controlled(rows)
    assert result["slope"] > 1
    assert result["win_rate"] == pytest.approx(0.5, abs=0.01)


def test_length_control_changes_nothing_at_equal_lengths() -> None:
    rows = [met([1.0], [0.0])] * 30 + [met([0.0], [1.0])] * 10
    result = length_controlled(rows)
    assert result["slope"] == 0.0
    # The ridge's pull on the constant: sum of residuals = ridge x constant.
    constant = math.log(result["win_rate"] / (1 - result["win_rate"]))
    assert 40 * (0.75 - result["win_rate"]) == pytest.approx(RIDGE * constant, abs=1e-6)


def test_length_control_stays_finite_where_one_side_wins_everything() -> None:
    result = length_controlled([met([1.0], [0.0], 100 + n, 100) for n in range(20)])
    assert 0.95 < result["win_rate"] < 1.0 and all(map(math.isfinite, result["ci95"]))


@pytest.mark.parametrize(("n", "bound"), [(1, 0.0), (2, math.log(2) - 0.5), (4, math.log(4) - 0.75)])
def test_the_kl_bound_of_the_best_of_n(n: int, bound: float) -> None:
    assert kl_bound(n) == pytest.approx(bound)


def test_the_best_of_n_curve_picks_by_reward_and_scores_by_every_judge() -> None:
    # Of rewards 1, 2, 3 the best of two is 2 once and 3 twice; gold goes the other way.
    rewards, gold = [[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]], [[0.9, 0.1, 0.5], [0.2, 0.4, 0.6]]
    first, two, three = best_of_curve(rewards, {"reward": rewards, "gold": gold}, [1, 2, 3])
    assert first["reward"]["mean"] == pytest.approx((2 + 0) / 2)
    assert two["reward"]["mean"] == pytest.approx(((2 + 3 + 3) / 3 + 0) / 2)
    assert three["reward"]["mean"] == pytest.approx((3 + 0) / 2)
    assert three["gold"]["mean"] == pytest.approx((0.1 + 0.4) / 2)  # answers that tie share their mean
    assert two["gold"]["mean"] == pytest.approx(((0.5 + 0.1 + 0.1) / 3 + 0.4) / 2)
    assert [first["n"], two["n"]] == [1, 2] and two["kl_bound"] == kl_bound(2)
    assert [first["limit"], two["limit"]] == [reward_limit(rewards, kl_bound(n)) for n in (1, 2)]


def test_the_limit_of_the_reward_by_hand() -> None:
    # Variances 1 (of 1, 2, 3) and 0, so s^2 = 1/2; means 2 and 4. sqrt(1/2 * 2 * 4) = 2.
    rewards = [[1.0, 3.0, 2.0], [4.0, 4.0]]
    assert reward_limit(rewards, 0.0) == pytest.approx(3.0)
    assert reward_limit(rewards, 4.0) == pytest.approx(3.0 + 2.0)
    assert reward_limit([[1.0], [2.0, 3.0]], 1.0) is None


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.5])
def test_the_limit_is_the_reward_of_the_optimal_policy(beta: float) -> None:
    """exp(r / beta) tilts two prompts' normal rewards, on a fine grid; its mean and its KL are summed."""
    reward_G = np.linspace(-12, 12, 4001)
    gains, kls = [], []
    for spread in (1.0, 0.5):
        base_G = np.exp(-((reward_G / spread) ** 2) / 2)
        base_G /= base_G.sum()
        best_G = base_G * np.exp(reward_G / beta)
        best_G /= best_G.sum()
        gains.append(float((best_G * reward_G).sum()))
        kls.append(float((best_G * reward_G).sum() / beta - np.log((base_G * np.exp(reward_G / beta)).sum())))
    # Two answers at +-spread / sqrt(2) have that spread, by the unbiased estimate, and a mean of 0.
    answers = [[-spread / 2**0.5, spread / 2**0.5] for spread in (1.0, 0.5)]
    limit = reward_limit(answers, sum(kls) / 2)
    assert limit == pytest.approx(sum(gains) / 2, rel=1e-6)


@pytest.mark.parametrize(("n", "share"), [(2, 0.908), (4, 0.912), (16, 0.922), (64, 0.930)])
def test_little_is_left_to_gain_over_the_best_of_n(n: int, share: float) -> None:
    """The expected largest of n standard normals, by quadrature, in relation to the limit at its bound."""
    x_G = np.linspace(-9, 9, 20001)
    density_G = stats.norm.pdf(x_G) * n * stats.norm.cdf(x_G) ** (n - 1)
    best = float((x_G * density_G).sum() * (x_G[1] - x_G[0]))
    limit = reward_limit([[-(0.5**0.5), 0.5**0.5]], kl_bound(n))
    assert limit is not None and best / limit == pytest.approx(share, abs=0.001)
