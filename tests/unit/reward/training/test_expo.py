"""The search for the factor: which are tried, which one wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reward.training.batches import Item
from reward.training.build import build_model
from reward.training.data import RewardData
from reward.training.expo import Trial, best, between_neighbours, held_pairs, judge_pairs, search
from rlhf.config.reward import ExpoConfig, RewardConfig
from rlhf.core.errors import DataError
from rlhf.data.drops import DropReport
from rlhf.kernels.packing import Tree
from rlhf.models.chat import Chat


def expo(**values: Any) -> ExpoConfig:
    return ExpoConfig.model_validate({"weak": "a", "strong": "b", **values})


def hill(top: float) -> Any:
    """A judge to whom one factor is best, and the farther from it the worse."""
    return lambda factor: Trial(factor, 1 - abs(factor - top), 0.5)


def test_the_papers_search_finds_a_hill_to_the_hundredth() -> None:
    trials = search(hill(1.52), expo())
    assert best(trials).factor == 1.52
    factors = [trial.factor for trial in trials]
    assert factors == sorted(factors)
    coarse = [n / 10 for n in range(10, 21)]  # 1, and 1.1 to 2.0 by tenths
    fine = [n / 100 for n in range(141, 160) if n != 150]  # between the neighbours of 1.5
    assert factors == sorted(coarse + fine)


def test_one_is_always_tried_and_may_win() -> None:
    trials = search(hill(0.5), expo(factors=[1.5, 1.25], refine=None))
    assert [trial.factor for trial in trials] == [1.0, 1.25, 1.5]
    assert best(trials).factor == 1.0
    refined = search(hill(0.5), expo(factors=[1.1], refine=0.05))
    assert [trial.factor for trial in refined] == [1.0, 1.05, 1.1]  # below 1 there is no neighbour


def test_ties_go_to_the_lower_loss_and_then_to_the_smaller_factor() -> None:
    trials = [
        Trial(1.0, 0.8, 0.6),
        Trial(1.2, 0.9, 0.5),
        Trial(1.4, 0.9, 0.4),
        Trial(1.6, 0.9, 0.4),
        Trial(2.0, 0.7, 0.1),
    ]
    assert best(trials).factor == 1.4


@pytest.mark.parametrize(
    ("middle", "step", "expected"),
    [
        (1.5, 0.1, [1.1, 1.2, 1.3, 1.4, 1.6, 1.7, 1.8, 1.9]),
        (1.0, 0.4, [1.4]),
        (2.0, 0.2, [1.6, 1.8]),
        (1.5, 0.7, []),
    ],
)
def test_steps_between_neighbours(middle: float, step: float, expected: list[float]) -> None:
    result = between_neighbours([1.0, 1.5, 2.0], middle, step)
    assert result == pytest.approx(expected)


PAIR = Item(Tree((1, 2), ((7, 8), (9,))), ((None,), (None,)), 2)
RATED = Item(Tree((1,), ((2,),)), ((1.0,),))


@pytest.fixture
def config(tiny_base: Path) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "recipe": "helpfulness-bt-scaled-expo",
            "model": {"base": str(tiny_base), "dtype": "float32", "max_length": 100},
            "data": {
                "ratings": [{"path": "demo", "format": "helpsteer2"}],
                "preferences": [{"path": "demo", "format": "helpsteer2-preference"}],
            },
        }
    )


def test_held_pairs_are_needed_and_asked_for_before_training(config: RewardConfig) -> None:
    data = RewardData([], [RATED, PAIR], [], DropReport())
    assert held_pairs(config, data) == [PAIR]
    none = RewardData([PAIR], [RATED], [], DropReport())
    with pytest.raises(DataError, match="expo") as caught:
        held_pairs(config, none)
    assert "data.validation_share" in caught.value.fix
    assert held_pairs(config.model_copy(update={"expo": None}), none) == []


def test_a_judge_counts_right_pairs_and_takes_the_mean_loss(config: RewardConfig, tiny_chat: Chat) -> None:
    model = build_model(config, tiny_chat)
    flipped = Item(PAIR.tree, PAIR.ratings, -3)
    tie = Item(Tree((1,), ((5,), (5,))), PAIR.ratings, 1)
    pairs = [PAIR, PAIR, flipped, tie]
    accuracy, loss = judge_pairs(model, pairs, budget=4, pad_id=tiny_chat.pad_id)
    assert (accuracy, loss) == (
        0.0,
        pytest.approx(torch.log(torch.tensor(2.0)).item()),
    )  # a fresh head: all ties
    generator = torch.Generator().manual_seed(0)
    head = model.get_base_model().score.modules_to_save["default"]
    head.weight.data.copy_(torch.empty(head.weight.shape).normal_(0, 0.1, generator=generator))
    rewards = []
    for ids in ([1, 2, 7, 8], [1, 2, 9]):
        with torch.no_grad():
            rewards.append(model(input_ids=torch.tensor([ids])).logits[0, 0])
    margin = rewards[1] - rewards[0]  # a positive strength: the second is the better one
    right = 2 if margin > 0 else 1
    expected = (
        2 * torch.nn.functional.softplus(-margin) + torch.nn.functional.softplus(margin) + 0.6931472
    ) / 4
    accuracy, loss = judge_pairs(model, pairs, budget=1024, pad_id=tiny_chat.pad_id)
    assert accuracy == right / 4
    assert loss == pytest.approx(expected.item(), rel=1e-4)
