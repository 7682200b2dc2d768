"""What the algorithm is given in place of the bare reward: by hand, in order, and the same after an
interruption."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from policy.rewards.protocol import RewardResult
from policy.rewards.shaping import EPSILON, Moments, Shaping, length_penalised, moments_of, normalised
from rlhf.config.rewards import ShapingConfig
from rlhf.core.errors import RewardError

NAN = math.nan


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over one process."""
    return tensor


def shaped(rewards: list[float], lengths: list[int] | None = None, **settings: Any) -> list[float]:
    return Shaping(ShapingConfig.model_validate({"missing": "drop", **settings})).of(
        RewardResult(rewards), lengths or [1] * len(rewards)
    )


def test_nothing_is_done_unless_asked() -> None:
    assert shaped([1.5, -2.0, 1e6]) == [1.5, -2.0, 1e6]
    assert not ShapingConfig().active and ShapingConfig(clip=(0, 1)).active


def test_by_the_batch() -> None:
    rewards = [1.0, 4.0, 7.0]  # mean 4, standard deviation sqrt(6)
    expected = [-3 / (math.sqrt(6) + EPSILON), 0.0, 3 / (math.sqrt(6) + EPSILON)]
    assert shaped(rewards, normalise="batch") == pytest.approx(expected)


def test_rewards_that_are_all_the_same_become_zero() -> None:
    assert shaped([2.0, 2.0], normalise="batch") == [0.0, 0.0]
    assert shaped([2.0], normalise="running") == [0.0]


def test_running_moments_are_those_of_all_rewards_so_far() -> None:
    shaping = Shaping(ShapingConfig(normalise="running", missing="drop"))
    batches = [[1.0, 4.0], [10.0], [2.0, 3.0, NAN, -5.0]]
    seen: list[float] = []
    for batch in batches:
        known = [reward for reward in batch if not math.isnan(reward)]
        seen += known
        given = shaping.of(RewardResult(batch), [1] * len(batch))
        expected = [(r - fmean(seen)) / (pstdev(seen) + EPSILON) for r in known]
        assert [item for item in given if not math.isnan(item)] == pytest.approx(expected)
    assert math.isnan(given[2])
    assert (shaping.seen.count, shaping.seen.mean) == (6, pytest.approx(fmean(seen)))
    assert shaping.seen.std == pytest.approx(pstdev(seen))


def test_moments_of_processes_are_added_up() -> None:
    """Each of three processes sees the sums over all, whatever it has itself."""
    ours, others = torch.tensor([1.0, NAN, 5.0]), [2.0, 8.0, 8.0]
    everything = [1.0, 5.0, *others]

    def reduce(values: torch.Tensor) -> torch.Tensor:
        if values.dim():
            return values + torch.tensor([len(others), sum(others)], dtype=torch.double)
        return values + sum((other - fmean(everything)) ** 2 for other in others)

    result = moments_of(ours, reduce)
    assert (result.count, result.mean) == (5, pytest.approx(fmean(everything)))
    assert result.std == pytest.approx(pstdev(everything))


def test_joining_nothing_changes_nothing() -> None:
    assert Moments().merged(Moments()) == Moments()
    assert (
        Moments(2, 3.0, 4.0).merged(Moments())
        == Moments(2, 3.0, 4.0)
        == Moments().merged(Moments(2, 3.0, 4.0))
    )


def test_clipping() -> None:
    assert shaped([-9.0, 0.5, 9.0], clip=[-1, 2]) == [-1.0, 0.5, 2.0]


def test_length_costs_only_above_what_is_free() -> None:
    penalty = {"per_token": 0.5, "above": 3}
    assert shaped([1.0, 1.0, 1.0], [2, 3, 7], length_penalty=penalty) == [1.0, 1.0, -1.0]
    assert length_penalised(torch.tensor([0.0]), torch.tensor([4.0]), 0.25, 0).item() == -1.0


def test_the_order_is_normalise_clip_charge() -> None:
    given = shaped(
        [0.0, 10.0], [1, 5], normalise="batch", clip=[-0.5, 0.5], length_penalty={"per_token": 1.0}
    )
    assert given == [-0.5 - 1, 0.5 - 5]


def test_a_better_answer_stays_better() -> None:
    for settings in ({"normalise": "batch"}, {"normalise": "running"}, {"clip": (-100, 100)}):
        low, high = shaped([1.0, 2.0], **settings)
        assert low < high
    assert normalised(torch.tensor([3.0]), Moments(2, 1.0, 2.0)).item() > 0


def test_missing_rewards_are_in_no_mean_and_stay_missing() -> None:
    first, second, third = shaped(
        [1.0, NAN, 3.0], normalise="batch", clip=[-9, 9], length_penalty={"per_token": 0.1}
    )
    assert math.isnan(second)
    assert (first, third) == (pytest.approx(-1 / (1 + EPSILON) - 0.1), pytest.approx(1 / (1 + EPSILON) - 0.1))


def test_a_missing_reward_ends_the_run_unless_it_may_be_dropped() -> None:
    with pytest.raises(RewardError, match="1 of 2") as caught:
        shaped([1.0, NAN], missing="error")
    assert "reward_shaping.missing=drop" in caught.value.fix


def test_where_everything_is_missing_the_run_ends() -> None:
    given = RewardResult([NAN, NAN], missing={0: "server: it is ill", 1: "server: it is ill"})
    with pytest.raises(RewardError, match="server: it is ill"):
        Shaping(ShapingConfig()).of(given, [1, 1])
    # Another process may have some.
    other = Shaping(ShapingConfig(missing="drop"), lambda values: values + 1)
    assert all(map(math.isnan, other.of(given, [1, 1])))


def test_a_resumed_run_goes_on_with_the_moments_it_had(tmp_path: Path) -> None:
    unbroken, before, after = (Shaping(ShapingConfig(normalise="running")) for _ in range(3))
    first, second = RewardResult([0.1, 0.7, 1 / 3]), RewardResult([2.0, -1.0])
    unbroken.of(first, [1] * 3)
    before.of(first, [1] * 3)
    before.save(tmp_path)
    after.load(tmp_path)
    assert after.seen == before.seen
    assert after.of(second, [1] * 2) == unbroken.of(second, [1] * 2)
    after.load(tmp_path / "of an older version")
    assert after.seen == unbroken.seen
