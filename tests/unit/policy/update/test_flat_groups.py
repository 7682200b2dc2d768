"""Groups whose rewards are all equal: which are found, and what skipping them changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.update.advantages import Unfinished, flat_groups, skip_flat_groups
from rlhf.core.records import Message, Rollout

NAN = math.nan
PROMPTS = [(Message("user", f"Question {n}?"),) for n in range(2)]


@pytest.mark.parametrize(
    ("rewards", "finished", "rule", "flat"),
    [
        ([1.0, 1.0, 1.0, 2.0], [True] * 4, "keep", [True, False]),
        ([1.0, 1.0, NAN, 2.0], [True] * 4, "keep", [True, True]),  # one reward has no spread
        ([NAN, NAN, 1.0, 2.0], [True] * 4, "keep", [True, False]),
        ([1.0, 2.0, 1.0, 2.0], [True, False, True, True], "drop", [True, False]),
        ([1.0, 2.0, 1.0, 2.0], [False, False, True, True], "drop", [True, False]),
        # The unfinished answers have the reward -1: (1, -1) and (-1, -1).
        ([1.0, 1.0, 1.0, 2.0], [True, False, False, False], "penalty", [False, True]),
    ],
)
def test_flat_groups_by_hand(
    rewards: list[float], finished: list[bool], rule: Unfinished, flat: list[bool]
) -> None:
    flat_P = flat_groups(torch.tensor(rewards), torch.tensor(finished), 2, rule, -1.0)
    assert flat_P.tolist() == flat
    expected = [NAN if flat[place // 2] else reward for place, reward in enumerate(rewards)]
    assert skip_flat_groups(torch.tensor(rewards), flat_P).tolist() == pytest.approx(expected, nan_ok=True)


def rollout(chat: Any, prompt: int, ids: tuple[int, ...]) -> Rollout:
    return Rollout(tuple(chat.prompt_ids(PROMPTS[prompt])), ids, (), True, "text")


def update(trainer: Any, answers: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures and gradients of one update."""
    trainer.training_step(trainer.model, [trainer.train_dataset[place] for place in range(answers)])
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return trainer.figures, gradients


@pytest.mark.parametrize(
    "algorithm",
    [
        "{unfinished: keep, kl: {estimator: k1, reduction: sum, coefficient: 0.5}",
        "{unfinished: keep, kl: {estimator: k2, reduction: sum, placement: loss, coefficient: 0.5}",
        "{name: rloo",
    ],
)
def test_a_skipped_group_might_as_well_not_have_been_sampled(
    policy_trainer: Callable[..., Any], tiny_chat: Any, algorithm: str
) -> None:
    """Two groups, of which the second is flat: skipped, the update is that of the first group alone."""
    groups = [
        [rollout(tiny_chat, 0, (301, 302)), rollout(tiny_chat, 0, (303,))],
        [rollout(tiny_chat, 1, (304, 305, 306)), rollout(tiny_chat, 1, (307,))],
    ]
    skip, keep = (f"algorithm={algorithm}, flat_groups: {choice}}}" for choice in ("skip", "keep"))
    figures, gradients = update(policy_trainer(PROMPTS, groups, [1.0, 2.0, 3.0, 3.0], skip), 4)
    alone, expected = update(policy_trainer(PROMPTS[:1], groups[:1], [1.0, 2.0], keep), 2)
    kept, others = update(policy_trainer(PROMPTS, groups, [1.0, 2.0, 3.0, 3.0], keep), 4)
    for name, gradient in expected.items():
        close = 5e-5 * gradient.abs().max().item()
        assert torch.allclose(gradients[name], gradient, atol=close, rtol=1e-3), name
    assert figures["loss/policy"] == pytest.approx(alone["loss/policy"], abs=1e-5)
    assert any(not torch.allclose(others[name], gradient, rtol=1e-2) for name, gradient in expected.items())
    assert figures["reward/groups_skipped"] == 1
    assert "reward/groups_skipped" not in kept
    assert figures["reward/mean"] == kept["reward/mean"] == pytest.approx(9 / 4)  # logged over all answers
    assert figures["reward/groups_with_spread"] == figures["reward/counted_share"] == 0.5
    assert kept["reward/counted_share"] == 1


def test_a_spread_is_that_of_counted_answers_after_shaping(
    policy_trainer: Callable[..., Any], tiny_chat: Any
) -> None:
    """Rewards 1 and 2 in both groups: clipped to 1 they are equal, and one finished answer has no spread."""
    whole, cut = rollout(tiny_chat, 0, (301,)), replace(rollout(tiny_chat, 0, (301, 302)), finished=False)
    for words, groups, spread in (
        (["algorithm.unfinished=keep"], [[whole, whole], [whole, whole]], 1.0),
        (["reward_shaping={clip: [0, 1]}"], [[whole, whole], [whole, whole]], 0.0),
        (["algorithm.unfinished=drop"], [[whole, whole], [whole, cut]], 0.5),
    ):
        figures, _ = update(policy_trainer(PROMPTS, groups, [1.0, 2.0, 1.0, 2.0], *words), 4)
        assert figures["reward/groups_with_spread"] == spread, words


def test_an_update_of_flat_groups_alone_changes_nothing(
    policy_trainer: Callable[..., Any], tiny_chat: Any
) -> None:
    groups = [[rollout(tiny_chat, n, (301, 302)), rollout(tiny_chat, n, (303,))] for n in range(2)]
    words = ("algorithm.flat_groups=skip", "algorithm.unfinished=keep")
    figures, gradients = update(policy_trainer(PROMPTS, groups, [1.0, 1.0, 2.0, 2.0], *words), 4)
    assert (figures["loss/policy"], figures["reward/groups_skipped"]) == (0.0, 2)
    assert all(not gradient.any() for gradient in gradients.values())
