from __future__ import annotations

import math

import pytest
import torch

from policy.algorithms.protocol import MeasuredBatch
from policy.update.per_token import shown_answers, with_tokens
from policy.update.statistics import UpdateStatistics, memory_figures
from policy.update.step import check_update, start_bound
from rlhf.core.errors import DivergenceError
from rlhf.core.records import Message, Prompt, Rollout


def rollout(length: int, *, finished: bool = True) -> Rollout:
    return Rollout((1, 2), tuple(range(length)), (), finished, f"{length} tokens")


ROLLOUTS = [
    rollout(2),
    rollout(1),
    rollout(3, finished=False),
]
REWARDS = [1.0, 0.0, 5.0]


def measured(log_ratio: list[float], answer: list[int]) -> MeasuredBatch:
    """A row of which only the log-ratios matter here."""
    count = len(set(answer))
    return MeasuredBatch(
        rewards_N=torch.zeros(count),
        penalty_M=torch.zeros(len(answer)),
        finished_N=torch.ones(count, dtype=torch.bool),
        answer_M=torch.tensor(answer),
        logps_M=torch.tensor(log_ratio),
        reference_M=torch.zeros(len(answer)),
        importance_M=None,
        group_size=count,
    )


def statistics(rollouts: list[Rollout] = ROLLOUTS, epochs: int = 1) -> UpdateStatistics:
    """Two rows; the first holds the last answer, so that places matter."""
    gathered = UpdateStatistics(REWARDS, rollouts, epochs)
    gathered.add(
        [2],
        measured([0.5, -0.5, 1.0], [0, 0, 0]),
        charged_N=torch.tensor([0.6]),
        entropy_M=torch.tensor([1.0, 2.0, 3.0]),
        rewards_M=torch.tensor([math.nan] * 3),
    )
    gathered.add(
        [0, 1],
        measured([1.0, 1.0, -3.0], [0, 0, 1]),
        charged_N=torch.tensor([0.2, 0.1]),
        entropy_M=torch.tensor([1.0, 2.0, 3.0]),
        rewards_M=torch.tensor([-0.5, 0.5, 1.0 / 3]),
    )
    gathered.advantages += [torch.tensor([4.0]), torch.tensor([-1.0, -3.0])]
    gathered.add_losses({"loss/policy": 0.5}, {"ratio/clipped_share": 1.0})
    gathered.add_losses({"loss/policy": -0.25, "loss/kl": 0.125}, {"ratio/clipped_share": 2.0})
    return gathered


def test_figures_by_hand() -> None:
    ratios = [0.5, -0.5, 1.0, 1.0, 1.0, -3.0]
    figures = statistics().figures(coefficient=0.5)
    # Lengths 2, 1, 3 and rewards 1, 0, 5: deviations (0, -1, 1) and (-1, -2, 3).
    correlation = (2 + 3) / math.sqrt(2 * 14)
    advantages = [-1.0, -3.0, 4.0]
    assert figures == pytest.approx(
        {
            "loss/policy": 0.25,
            "loss/kl": 0.125,
            "reward/mean": 2.0,
            "reward/std": math.sqrt(14 / 3),
            "reward/missing": 0,
            "kl/mean": 0.0,
            "kl/sum": (2.0 - 3.0 + 1.0) / 3,
            "kl/abs_mean": 7 / 6,
            "kl/k2_mean": sum(d * d / 2 for d in ratios) / 6,
            "kl/k3_mean": sum(math.exp(-d) - 1 + d for d in ratios) / 6,
            "kl/abs_sum": 7 / 3,
            "kl/k2_sum": sum(d * d / 2 for d in ratios) / 3,
            "kl/k3_sum": sum(math.exp(-d) - 1 + d for d in ratios) / 3,
            "kl/charged": 0.3,
            "kl/coefficient": 0.5,
            "kl/penalty": 0.15,
            "ratio/clipped_share": 1.0,
            "length/mean": 2.0,
            "length/finished_share": 2 / 3,
            "length/reward_correlation": correlation,
            "policy/entropy": 2.0,
            "advantage/std": math.sqrt(sum(a * a for a in advantages) / 3),
        },
        abs=1e-5,
    )


def test_losses_are_means_over_the_passes() -> None:
    figures = statistics(epochs=2).figures(coefficient=0.0)
    assert (figures["loss/policy"], figures["ratio/clipped_share"]) == (0.125, 0.5)


@pytest.mark.parametrize("rewards", [[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
def test_the_correlation_of_a_constant_is_zero(rewards: list[float]) -> None:
    gathered = UpdateStatistics(rewards, [rollout(2)] * 3)
    gathered.add(
        [0, 1, 2],
        measured([0.0] * 6, [0, 0, 1, 1, 2, 2]),
        charged_N=torch.zeros(3),
        entropy_M=torch.zeros(6),
        rewards_M=torch.zeros(6),
    )
    gathered.advantages.append(torch.zeros(3))
    assert gathered.figures(0.0)["length/reward_correlation"] == 0.0


def test_samples_keep_the_order_of_the_answers() -> None:
    prompts = [Prompt((Message("system", "S"), Message("user", f"Q{n}"))) for n in range(3)]
    rows = statistics().samples(7, prompts, [None, 0.5, 1.0])
    assert rows[0] == {
        "step": 7,
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q0"}],
        "answer": "2 tokens",
        "reward": 1.0,
        "gold": None,
        "kl": 2.0,
        "length": 2,
        "finished": True,
    }
    assert [row["kl"] for row in rows] == [2.0, -3.0, 1.0]
    assert [row["gold"] for row in rows] == [None, 0.5, 1.0]
    assert [row["finished"] for row in rows] == [True, True, False]


def test_the_kl_of_each_token_of_shown_answers_sums_to_the_answers_kl() -> None:
    gathered = statistics()
    prompts = [Prompt((Message("user", f"Q{n}"),)) for n in range(3)]
    rows = with_tokens(
        gathered.samples(7, prompts, [None] * 3),
        gathered.rollouts,
        gathered.tokens,
        lambda ids: [f"<{token}>" for token in ids],
    )
    assert [row["token_kl"] for row in rows] == [[1.0, 1.0], [-3.0], [0.5, -0.5, 1.0]]
    assert [row["tokens"] for row in rows] == [["<0>", "<1>"], ["<0>"], ["<0>", "<1>", "<2>"]]
    assert [sum(row["token_kl"]) for row in rows] == [row["kl"] for row in rows]
    # The last answer takes no part in the update; there is no critic.
    assert [row.get("token_reward") for row in rows] == [[-0.5, 0.5], [0.3333], None]
    assert not any("token_value" in row for row in rows)


def test_shown_answers_cover_the_range_of_rewards() -> None:
    # In the order of rewards: positions 9, 8, ... 0; of these number 0, 3, 6 and 9.
    assert shown_answers([-float(n) for n in range(10)]) == {9, 6, 3, 0}
    assert shown_answers([math.nan, 1.0, math.nan]) == {1}
    assert shown_answers([math.nan]) == set()


def test_peak_memory_only_grows() -> None:
    (before,) = memory_figures().values()
    held = torch.ones(64 * 2**20)
    (after,) = memory_figures().values()
    assert before <= after and 0.2 < after < 1000 and len(held)


def test_missing_rewards_and_further_columns() -> None:
    """Rewards 1, none, 5: mean 3, deviation 2; lengths 2 and 3 of those that have one rise with them."""
    gathered = UpdateStatistics(
        [1.0, math.nan, 5.0],
        ROLLOUTS,
        columns={"gold": [0.5, math.nan, 0.25], "held_out": [1.0, 2.0, 3.0]},
        missing={1: "gold: no check"},
    )
    row = measured([0.0] * 6, [0, 0, 1, 2, 2, 2])
    zeros = torch.zeros(6)
    gathered.add([0, 1, 2], row, charged_N=torch.zeros(3), entropy_M=zeros, rewards_M=zeros)
    gathered.advantages.append(torch.zeros(3))
    figures = gathered.figures(0.0)
    assert (figures["reward/mean"], figures["reward/std"], figures["reward/missing"]) == (3.0, 2.0, 1)
    assert (figures["reward/gold"], figures["reward/held_out"]) == (0.375, 2.0)
    assert figures["length/reward_correlation"] == pytest.approx(1.0)
    first, second, _ = gathered.samples(1, [Prompt((Message("user", "Q"),))] * 3, [None] * 3)
    assert (first["reward/gold"], first["reward/held_out"], "missing" in first) == (0.5, 1.0, False)
    assert math.isnan(second["reward"]) and second["missing"] == "gold: no check"


def test_policy_and_reference_agree_to_the_rounding_of_their_format() -> None:
    assert start_bound(torch.bfloat16, on_gpu=False) == start_bound(torch.float32, on_gpu=True) == 1e-4
    bound = start_bound(torch.bfloat16, on_gpu=True)
    check_update(1, {"kl/abs_mean": 0.01}, bound)
    for apart in (0.05, math.nan):
        with pytest.raises(DivergenceError):
            check_update(1, {"kl/abs_mean": apart}, bound)
    with pytest.raises(DivergenceError):
        check_update(1, {"kl/abs_mean": 0.01})
    check_update(2, {"kl/abs_mean": 0.5})


def test_a_gpu_logs_what_its_allocator_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments are part of it, and not of what was allocated."""
    assert memory_figures().keys() == {"memory/peak_gib"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    assert memory_figures() == {"memory/peak_gib": 2.0, "memory/reserved_gib": 3.0}
