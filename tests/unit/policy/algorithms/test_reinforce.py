from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from policy.rewards.protocol import RewardResult
from policy.update.forward import answer_tree, pack_groups, token_logps
from rlhf.core.errors import DivergenceError, EngineError, RewardError
from rlhf.core.records import Conversation, Message, Prompt, Rollout
from rlhf.training.schedule import draw_order

PROMPTS: list[Conversation] = [(Message("user", "Hi."),), (Message("user", "Name seven colours."),)]
REWARDS = [1.0, 2.0, -1.0, 4.0]


def update(trainer: Any) -> dict[str, float]:
    batch = [trainer.train_dataset[place] for place in range(len(REWARDS))]
    trainer.training_step(trainer.model, batch)
    return dict(trainer.figures)


def with_logprobs(trainer: Any, groups: list[list[Rollout]], off_by: float) -> list[list[Rollout]]:
    """The same answers, settings by an engine whose log-probabilities are that far from the trainer's."""
    settings = []
    for group in groups:
        (row,) = pack_groups([group], 10_000, 0)
        with torch.no_grad():
            logps, _, answer = token_logps(trainer.model, row.packed)
        settings.append(
            [
                replace(rollout, logprobs=tuple((logps[answer == number] + off_by).tolist()))
                for number, rollout in enumerate(group)
            ]
        )
    return settings


def test_the_trunk_ends_one_token_early_so_that_the_first_token_is_predicted() -> None:
    prompt = (1, 2, 3)
    group = [Rollout(prompt, ids, (), True, "") for ids in ((7, 8), (9,))]
    tree = answer_tree(group)
    assert (tree.trunk, tree.branches) == ((1, 2), ((3, 7, 8), (3, 9)))
    (row,) = pack_groups([group], 100, 0)
    assert row.packed.next_tokens.ids_M.tolist() == [7, 8, 9]


def test_answers_keep_their_places_through_packing() -> None:
    groups = [
        [Rollout((1,), (p, g), (), True, "") for g in range(10, 12 + p)] for p in range(3)
    ]  # 2, 3 and 4 answers
    flat = [rollout for group in groups for rollout in group]
    for budget in (1, 12, 100):
        rows = pack_groups(groups, budget, 0)
        assert sorted(place for row in rows for place in row.answers) == list(range(9))
        for row in rows:
            assert row.rollouts == [flat[place] for place in row.answers]


@pytest.mark.parametrize(
    ("rule", "advantages"),
    [
        # Rewards (1, 2) and (-1, 4), the last of them unfinished; no KL penalty.
        ("keep", [-1.0, 1.0, -5.0, 5.0]),
        ("drop", [-1.0, 1.0, 0.0, 0.0]),  # the third has no finished sibling to be compared with
        ("penalty", [-1.0, 1.0, 2.0, -2.0]),  # the last is worth -3 in place of 4
    ],
)
def test_unfinished_answers(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]], rule: str, advantages: list[float]
) -> None:
    settings = [f"algorithm.unfinished={rule}", "algorithm.kl.coefficient=0"]
    settings += ["algorithm.unfinished_reward=-3"] if rule == "penalty" else []
    figures = update(policy_trainer(PROMPTS, groups, REWARDS, *settings))
    squares = sum(a * a for a in advantages) / 4
    assert figures["advantage/std"] == pytest.approx(math.sqrt(squares))  # their mean is 0
    assert figures["length/finished_share"] == 0.75
    assert figures["reward/mean"] == 1.5  # as the reward model gave them, whatever the rule


def test_the_penalty_is_named_by_the_config(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]]
) -> None:
    figures = update(
        policy_trainer(
            PROMPTS, groups, REWARDS, "algorithm.kl={estimator: abs, reduction: mean, coefficient: 0.3}"
        )
    )
    other = update(
        policy_trainer(
            PROMPTS, groups, REWARDS, "algorithm.kl={estimator: k2, reduction: sum, coefficient: 0.1}"
        )
    )
    assert other["kl/abs_mean"] == pytest.approx(figures["kl/abs_mean"])  # all are logged, one is charged
    lengths = [len(rollout.completion_ids) for group in groups for rollout in group]
    assert other["kl/penalty"] == pytest.approx(0.1 * other["kl/k2_mean"] * sum(lengths) / 4, rel=1e-5)
    assert figures["kl/penalty"] > 0


def test_gold_scores_where_a_prompt_can_be_checked(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from policy.update import statistics

    monkeypatch.setattr(statistics, "gold_score", lambda check, answer: check["worth"])
    trainer = policy_trainer(PROMPTS, groups, REWARDS)
    batch_order = [int(trainer.train_dataset[place]["prompt"]) for place in (0, 2)]
    trainer.prompts = [Prompt(PROMPTS[0], check={"worth": 0.25}), Prompt(PROMPTS[1])]
    assert update(trainer)["gold/mean"] == 0.25  # of the two answers that can be checked
    golds = [row["gold"] for row in trainer.samples]
    assert golds == [0.25 if place == 0 else None for place in batch_order for _ in range(2)]


def test_an_engine_that_agrees(policy_trainer: Callable[..., Any], groups: list[list[Rollout]]) -> None:
    trainer = policy_trainer(PROMPTS, groups, REWARDS)
    settings = with_logprobs(trainer, groups, off_by=0.25)
    trainer.engine.generate = lambda *_, **__: settings
    figures = update(trainer)
    assert figures["engine/logprob_difference"] == pytest.approx(0.25, abs=1e-4)
    assert figures["engine/logprob_difference_max"] == pytest.approx(0.25, abs=1e-4)


def test_an_engine_that_disagrees_stops_the_run(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]]
) -> None:
    trainer = policy_trainer(PROMPTS, groups, REWARDS, "rollouts.logprob_bound=0.2")
    settings = with_logprobs(trainer, groups, off_by=-0.25)
    trainer.engine.generate = lambda *_, **__: settings
    with pytest.raises(EngineError, match=r"update 2: .* 0\.250") as caught:
        update(trainer)
    assert "0.2" in caught.value.allowed and "rollouts.logprob_bound" in caught.value.allowed
    assert caught.value.exit_code == 1


def test_a_policy_that_does_not_start_as_the_reference_stops_the_run(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]]
) -> None:
    trainer = policy_trainer(PROMPTS, groups, REWARDS)
    trainer.state.global_step = 0
    with pytest.raises(DivergenceError) as caught:
        update(trainer)
    assert "model.fast_layers=false" in caught.value.fix


def test_a_reward_that_is_no_number_stops_the_run(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]]
) -> None:
    trainer = policy_trainer(PROMPTS, groups, [1.0, math.inf, 0.0, 0.0])
    with pytest.raises(DivergenceError, match="nan at update 2"):
        update(trainer)
    trainer.rewards.of = lambda *_: RewardResult([1.0, math.nan, 0.0, 0.0])
    with pytest.raises(RewardError, match="1 of 4"):
        update(trainer)


def test_every_prompt_is_drawn_once_before_any_is_drawn_again() -> None:
    order = draw_order(7, 18, seed=0)
    assert len(order) == 18
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert draw_order(7, 12, seed=0) == order[:12]  # more steps only add
    assert draw_order(7, 18, seed=1) != order


def test_the_clock_stops_once_the_kernels_are_done(
    policy_trainer: Callable[..., Any], groups: list[list[Rollout]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the last backward pass is still in flight when Python returns from it."""
    trainer = policy_trainer(PROMPTS, groups, REWARDS)
    monkeypatch.setattr("policy.training.trainer.finish_kernels", lambda: time.sleep(20))
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(seconds))
    waited: list[float] = []
    now = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: now() + sum(waited))
    assert update(trainer)["time/update"] > 20
