"""The critic on the policy's base: where it starts, what it reads, and that it and the policy leave each
other alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.training.critic import attach_critic, critic_start, split_parameters
from policy.update.forward import pack_groups, token_logps, token_values
from reward.scorer import Scorer
from rlhf.config.policy import PolicyConfig
from rlhf.core.records import Conversation, Message, Rollout
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, load_causal, lora_config, with_adapter
from rlhf.models.names import CRITIC
from rlhf.models.roles import role

PROMPTS: list[Conversation] = [(Message("user", "Hi."),), (Message("user", "Name seven colours."),)]
REWARDS = [1.0, 2.0, -1.0, 4.0]
PPO = "algorithm={name: ppo, unfinished: keep}"


def config(base: Path, reward: Any, **more: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "dtype": "float32"},
            "adapter": {"rank": 4},
            "reward": reward,
            "data": {"prompts": [{"path": "demo"}]},
            "algorithm": {"name": "ppo"},
            **more,
        }
    )


@pytest.fixture
def model(tiny_base: Path) -> PeftModel:
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    return with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))


def values_of(model: PeftModel, groups: list[list[Rollout]]) -> Tensor:
    (row,) = pack_groups(groups, 10_000, 0)
    with torch.no_grad(), role(model, CRITIC):
        return token_values(model.eval(), row.packed)


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_it_starts_as_the_reward_model(
    model: PeftModel, tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, weight: float
) -> None:
    """What it expects once a whole conversation stands is what the reward model gives that conversation."""
    settings = config(tiny_base, {"adapter": str(tiny_reward), "weight": weight})
    conversation = (*PROMPTS[1], Message("assistant", "Red."))
    (score,) = Scorer.share(tiny_reward, model, tiny_chat).score([conversation])
    attach_critic(model, settings)
    ids = tuple(tiny_chat.conversation_ids(conversation))
    answers = [Rollout(ids[:5], (*ids[5:], 300), (), True, ""), Rollout(ids[:5], (7, 8), (), True, "")]
    values = values_of(model, [answers])
    assert len(values) == len(ids) - 5 + 1 + 2
    assert values[len(ids) - 5].item() == pytest.approx(weight * score.reward, abs=1e-5)  # before the 300
    assert values.std() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": {"function": "gold"}},
        {"reward": ["{adapter}", {"function": "gold"}]},
        {"reward": "{adapter}", "reward_shaping": {"normalise": "running"}},
        {"reward": "{adapter}", "algorithm": {"name": "ppo", "critic": {"start": "zero"}}},
    ],
)
def test_it_starts_from_nothing_by_config_or_without_a_reward_model(
    model: PeftModel,
    tiny_base: Path,
    tiny_reward: Path,
    groups: list[list[Rollout]],
    settings: dict[str, Any],
) -> None:
    reward = settings["reward"]
    reward = [str(tiny_reward), reward[1]] if isinstance(reward, list) else reward
    reward = str(tiny_reward) if reward == "{adapter}" else reward
    resolved = config(tiny_base, **{**settings, "reward": reward})
    assert critic_start(resolved) is None
    attach_critic(model, resolved)
    assert values_of(model, groups).tolist() == [0.0] * 10
    _, critic = split_parameters(model)
    assert len(critic) == 2 * 7 * 2 + 1 and all(parameter.dtype == torch.float32 for parameter in critic)


def test_a_reward_model_of_another_base_is_refused(other_base: Path, tiny_reward: Path) -> None:
    from rlhf.core.errors import ModelError

    base = load_causal(str(other_base), revision=None, dtype="float32", quantization="none")
    other = with_adapter(base, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    with pytest.raises(ModelError, match="reward model .*fingerprint"):
        attach_critic(other, config(other_base, str(tiny_reward)))


def gradients(model: PeftModel) -> tuple[bool, bool]:
    """Whether policy and critic have any."""
    policy, critic = (
        any(parameter.grad is not None for parameter in part) for part in split_parameters(model)
    )
    return policy, critic


def test_policy_and_critic_share_no_weight(
    model: PeftModel, tiny_base: Path, tiny_reward: Path, groups: list[list[Rollout]]
) -> None:
    from rlhf.models.forwards import enable_packed_logprobs

    enable_packed_logprobs(model.get_base_model(), 1.0)
    attach_critic(model, config(tiny_base, str(tiny_reward)))
    (row,) = pack_groups(groups, 10_000, 0)
    token_logps(model, row.packed)[0].sum().backward()
    assert gradients(model) == (True, False)
    model.zero_grad()
    with role(model, CRITIC):
        token_values(model, row.packed).sum().backward()
    assert gradients(model) == (False, True)
    assert model.active_adapter == "default"  # and the policy is active again
    assert all(parameter.requires_grad for part in split_parameters(model) for parameter in part)


Trainer = Callable[..., Any]


def update(trainer: Any) -> dict[str, float]:
    batch = [trainer.train_dataset[place] for place in range(len(REWARDS))]
    trainer.training_step(trainer.model, batch)
    return dict(trainer.figures)


def test_before_the_first_step_every_ratio_is_exactly_1(
    policy_trainer: Trainer, groups: list[list[Rollout]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from policy.algorithms import ppo

    apart: list[float] = []
    loss = ppo.clipped_token_ratio

    def listening(logps: Tensor, old: Tensor, *others: Any) -> Any:
        apart.append(float((logps.detach() - old).abs().max()))
        return loss(logps, old, *others)

    monkeypatch.setattr(ppo, "clipped_token_ratio", listening)
    trainer = policy_trainer(PROMPTS, groups, REWARDS, PPO, "tokens_per_batch=32", "algorithm.epochs=2")
    trainer.create_optimizer()
    figures = update(trainer)
    rows = len(apart) // 2
    assert rows == 2 and apart[:rows] == [0.0] * rows
    assert min(apart[rows:]) > 0  # the second pass comes after a step
    assert figures["loss/value"] > 0 and "loss/kl" not in figures
    assert {"value/mean", "value/explained_variance", "value/clipped_share", "return/mean"} <= figures.keys()


def test_the_figures_of_an_update(policy_trainer: Trainer, groups: list[list[Rollout]]) -> None:
    """One pass: loss and figures from the definition, the policy's and the critic's passes made by hand."""
    critic = "critic: {gae_lambda: 1.0, whiten: false}"
    settings = f"algorithm={{name: ppo, unfinished: keep, epochs: 1, {critic}, kl: {{coefficient: 0.3}}}}"
    trainer = policy_trainer(PROMPTS, groups, REWARDS, settings)
    (row,) = pack_groups(groups, 10_000, 0)
    with torch.no_grad():
        logps, _, answer = token_logps(trainer.model, row.packed)
        with role(trainer.model, CRITIC):
            values = token_values(trainer.model, row.packed)
        with role(trainer.model, None):
            reference, _, _ = token_logps(trainer.model, row.packed)
    charged = 0.3 * (logps - reference)
    returns = torch.stack(
        [
            REWARDS[row.answers[int(answer[t])]] - charged[t:][answer[t:] == answer[t]].sum()
            for t in range(len(answer))
        ]
    )
    figures = update(trainer)
    error = returns - values
    assert figures["loss/policy"] == pytest.approx(-error.mean().item(), rel=1e-4)
    assert figures["loss/value"] == pytest.approx(error.square().mean().item() / 2, rel=1e-4)
    assert figures["value/mean"] == pytest.approx(values.mean().item(), rel=1e-4)
    assert figures["return/mean"] == pytest.approx(returns.mean().item(), rel=1e-4)
    explained = 1 - error.var(correction=0) / returns.var(correction=0)
    assert figures["value/explained_variance"] == pytest.approx(explained.item(), rel=1e-3)
    assert figures["ratio/clipped_share"] == figures["value/clipped_share"] == 0.0


def test_the_critic_steps_at_its_own_rate_and_is_clipped_by_its_own_norm(
    policy_trainer: Trainer, groups: list[list[Rollout]]
) -> None:
    words = [PPO, "algorithm.epochs=1", "algorithm.critic.learning_rate=0.5", "optimizer.weight_decay=0"]
    trainer = policy_trainer(PROMPTS, groups, REWARDS, *words, "optimizer.learning_rate=0.25")
    optimizer = trainer.create_optimizer()
    policy, critic = split_parameters(trainer.model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(policy), len(critic)]
    update(trainer)
    norms = [
        torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm() for part in (policy, critic)
    ]
    trainer.args.max_grad_norm = 0.5 * float(min(norms))
    assert float(trainer._clip_grad_norm(trainer.model)) == pytest.approx(float(norms[0]))
    for part in (policy, critic):
        clipped = torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm()
        assert float(clipped) == pytest.approx(trainer.args.max_grad_norm, rel=1e-4)
    before = [[p.detach().clone() for p in part] for part in (policy, critic)]
    optimizer.step()
    for part, old, rate in zip((policy, critic), before, (0.25, 0.5), strict=True):
        moved = max(float((p.detach() - o).abs().max()) for p, o in zip(part, old, strict=True))
        assert moved == pytest.approx(rate, rel=1e-3)  # AdamW's first step is the learning rate


def test_in_its_warm_up_the_critic_learns_alone(policy_trainer: Trainer, groups: list[list[Rollout]]) -> None:
    trainer = policy_trainer(PROMPTS, groups, REWARDS, PPO, "algorithm.critic.warmup_steps=2")
    optimizer = trainer.create_optimizer()
    parts = split_parameters(trainer.model)
    for update_made, policy_moves in ((1, False), (2, True)):  # the second and the third update
        trainer.state.global_step = update_made
        before = [[p.detach().clone() for p in part] for part in parts]
        update(trainer)
        norm = trainer._clip_grad_norm(trainer.model)
        optimizer.step()
        optimizer.zero_grad()
        moved = [
            any(not torch.equal(p.detach(), o) for p, o in zip(part, old, strict=True))
            for part, old in zip(parts, before, strict=True)
        ]
        assert moved == [policy_moves, True] and (float(norm) > 0) == policy_moves


def test_a_few_updates_teach_the_critic_what_comes(
    policy_trainer: Trainer, groups: list[list[Rollout]]
) -> None:
    """The same answers and rewards again and again, the policy all but still: all is foreseen but what the
    first token decides."""
    words = [
        "optimizer.learning_rate=1e-9",
        "algorithm.kl.coefficient=0",
        "algorithm.critic={learning_rate: 0.02, clip: null, gae_lambda: 1}",
    ]
    trainer = policy_trainer(PROMPTS, groups, REWARDS, PPO, *words)
    optimizer = trainer.create_optimizer()
    settings = []
    for _ in range(15):
        settings.append(update(trainer))
        trainer._clip_grad_norm(trainer.model)
        optimizer.step()
        optimizer.zero_grad()
    # Rewards 1 and 2, and -1 and 4, after the same prompt: half a point and two and a half, at two of ten
    # tokens each.
    unforeseen = (2 * 0.5**2 + 2 * 2.5**2) / 10
    returns = torch.tensor([1.0] * 3 + [2.0] * 2 + [-1.0] * 2 + [4.0] * 3)
    most = 1 - unforeseen / returns.var(correction=0).item()
    assert settings[0]["value/explained_variance"] < most - 0.3
    assert settings[-1]["value/explained_variance"] == pytest.approx(most, abs=0.03)
    assert settings[-1]["loss/value"] == pytest.approx(unforeseen / 2, rel=0.1)


def test_gradients_are_the_same_where_activations_are_computed_twice(
    policy_trainer: Trainer, groups: list[list[Rollout]]
) -> None:
    """The second time a layer computes, the role that it computed for must still be active."""
    trainer = policy_trainer(PROMPTS, groups, REWARDS, PPO, "algorithm.epochs=1")
    result = []
    for _ in range(2):
        update(trainer)
        result.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        trainer.model.zero_grad()
        trainer.model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    plain, twice = result
    assert plain.keys() == twice.keys() and len(plain) == 2 * 28 + 1
    assert all(torch.allclose(plain[name], twice[name], rtol=1e-4, atol=1e-7) for name in plain)
