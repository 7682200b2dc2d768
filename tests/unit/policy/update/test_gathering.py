from __future__ import annotations

import pytest
import torch

from policy.algorithms.protocol import MeasuredBatch
from policy.rollouts.probe import EngineProbe
from policy.update.gathering import merge_figures, merge_probes, merge_statistics
from policy.update.statistics import UpdateStatistics
from rlhf.core.records import Rollout

LENGTHS, REWARDS, LOG_RATIOS = (
    [2, 1, 3, 2],
    [1.0, float("nan"), 5.0, 2.0],
    [0.5, -0.5, 1.0, 2.0, 1.0, -3.0, 0.25, 0.75],
)


def statistics(answers: range) -> UpdateStatistics:
    """Of some of four answers, each a row of its own."""
    rollouts = [Rollout((1,), tuple(range(LENGTHS[a])), (), a != 2, str(a)) for a in answers]
    missing = {place: "no reward" for place, a in enumerate(answers) if a == 1}
    values = UpdateStatistics(
        [REWARDS[a] for a in answers],
        rollouts,
        2,
        columns={"shaped": [10.0 * a for a in answers]},
        missing=missing,
    )
    for place, answer in enumerate(answers):
        first = sum(LENGTHS[:answer])
        log_ratio = torch.tensor(LOG_RATIOS[first : first + LENGTHS[answer]])
        zeros = torch.zeros_like(log_ratio)
        row = MeasuredBatch(
            rewards_N=torch.tensor([REWARDS[answer]]),
            penalty_M=zeros,
            finished_N=torch.tensor([True]),
            answer_M=torch.zeros(LENGTHS[answer], dtype=torch.long),
            logps_M=log_ratio,
            reference_M=zeros,
            importance_M=None,
            group_size=1,
        )
        charged_N = torch.tensor([0.1 * answer])
        values.add([place], row, charged_N=charged_N, entropy_M=log_ratio.abs(), rewards_M=log_ratio + answer)
        values.advantages.append(torch.tensor([float(answer)]))
        values.add_losses({"loss/policy": 0.5 * answer}, {"ratio/clipped_share": 1.0})
    return values


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_parts_together_give_the_figures_of_the_whole(cut: int) -> None:
    whole = statistics(range(4))
    parts = merge_statistics([statistics(range(cut)), statistics(range(cut, 4))])
    ours, theirs = (item.figures(0.05) for item in (parts, whole))
    assert ours == pytest.approx(theirs, abs=1e-6)
    rewards = torch.cat([tokens["token_reward"] for tokens in parts.tokens])
    answers = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0])
    assert torch.equal(rewards, torch.tensor(LOG_RATIOS) + answers)
    assert ours["reward/mean"] == pytest.approx((1 + 5 + 2) / 3)
    assert ours["reward/missing"] == 1
    assert ours["loss/policy"] == pytest.approx(0.5 * (1 + 2 + 3) / 2)  # two passes
    assert parts.missing == {1: "no reward"}
    assert [rollout.text for rollout in parts.rollouts] == ["0", "1", "2", "3"]


def test_probes_are_of_all_answers() -> None:
    def probe(policy: list[float], engine: list[float]) -> EngineProbe:
        values = EngineProbe("token", 2.0)
        zeros = torch.zeros(len(policy))
        values.add(torch.tensor(engine), torch.tensor(policy), zeros, zeros.long(), 1)
        return values

    whole = merge_probes([probe([1.0, 2.0], [1.5, 2.0]), probe([4.0], [1.0])])
    figures = whole.figures()
    assert figures["engine/logprob_difference"] == pytest.approx((0.5 + 0.0 + 3.0) / 3)
    assert figures["engine/logprob_difference_max"] == pytest.approx(3.0)


def test_figures_of_the_ranks() -> None:
    ranks = [
        {"time/score": 2.0, "judge/dollars": 1.0, "held_out/judge/dollars": 0.5, "reward/spread": 0.1},
        {
            "time/score": 3.0,
            "memory/peak_gib": 2.5,
            "judge/dollars": 2.0,
            "held_out/judge/dollars": 0.25,
            "reward/spread": 0.9,
        },
    ]
    assert merge_figures(ranks) == {
        "time/score": 3.0,
        "memory/peak_gib": 2.5,
        "judge/dollars": 3.0,
        "held_out/judge/dollars": 0.75,
        "reward/spread": 0.5,
    }
