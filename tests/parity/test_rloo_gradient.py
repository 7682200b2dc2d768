"""Our updates against those of TRL's own RLOOTrainer: same adapter, prompts, answers and rewards."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import RLOOConfig, RLOOTrainer

from policy.rewards.protocol import RewardResult
from rlhf.core.records import Conversation, Message, Rollout
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal, lora_config

P, G = 3, 4
PROMPTS: list[Conversation] = [
    (Message("user", "Hi."),),
    (Message("system", "Be brief."), Message("user", "Name a colour, and say why it is one.")),
    (Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?")),
]


def draw_groups(tiny_chat: Chat, seed: int) -> list[list[Rollout]]:
    """Answers of 1 to 15 tokens; two of each group are cut off, and one is a lone stop token."""
    draw = random.Random(seed)
    stop = tiny_chat.stop_ids[0]

    def rollout(prompt: Conversation, g: int) -> Rollout:
        ids = [draw.randrange(100, 40_000) for _ in range(draw.randint(1, 14))]
        ids = [ids, [*ids, stop], [stop], ids][g]
        return Rollout(
            tuple(tiny_chat.prompt_ids(prompt)), tuple(ids), (), ids[-1] == stop, tiny_chat.decode(ids)
        )

    return [[rollout(prompt, g) for g in range(G)] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def groups(tiny_chat: Chat) -> list[list[Rollout]]:
    return draw_groups(tiny_chat, seed=0)


@pytest.fixture(scope="module")
def rewards() -> list[float]:
    return torch.randn(P * G, generator=torch.Generator().manual_seed(0)).tolist()


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class GivenAnswers(RLOOTrainer):  # type: ignore[misc]
    """TRL's trainer, its rollouts replaced by given ones; tokenisation, KL, advantages and loss are TRL's."""

    expected_prompts: list[list[int]]
    answers: list[list[int]]

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        assert prompt_ids == self.expected_prompts
        return self.answers


def messages() -> list[list[dict[str, str]]]:
    """The prompt of each answer."""
    return [[{"role": m.role, "content": m.content} for m in prompt] for prompt in PROMPTS for _ in range(G)]


def trl_trainer(
    base: Path,
    chat: Chat,
    adapter: dict[str, Tensor],
    rewards: Callable[[], list[float]],
    folder: Path,
    *,
    coefficient: float,
    temperature: float,
    whole: bool = False,
    **options: Any,
) -> GivenAnswers:
    """TRL's trainer with the values of our adapter or, with `whole`, of our base."""
    model = load_causal(str(base), revision=None, dtype="float32", quantization="none")
    trainer = GivenAnswers(
        model=model.requires_grad_(whole),
        reward_funcs=lambda completions, **_: rewards(),
        args=RLOOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=P * G,
            num_generations=G,
            steps_per_generation=1,
            max_completion_length=16,
            beta=coefficient,
            temperature=temperature,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            disable_dropout=False,
            report_to="none",
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in messages()]),
        processing_class=copy.deepcopy(chat.tokenizer),
        peft_config=None if whole else lora_config(rank=4, alpha=4.0, dropout=0.0, targets="all-linear"),
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter.pop(name))
    assert not adapter
    trainer.current_gradient_accumulation_steps = 1  # `train` sets it
    return trainer


def give(trainer: GivenAnswers, groups: list[list[Rollout]]) -> None:
    rollouts = [rollout for group in groups for rollout in group]
    trainer.answers = [list(rollout.completion_ids) for rollout in rollouts]
    trainer.expected_prompts = [list(rollout.prompt_ids) for rollout in rollouts]


Case = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture(scope="module")
def known() -> dict[tuple[float, float, bool], dict[str, Tensor]]:
    """TRL's gradients by coefficient and temperature, and whether all weights are trained."""
    return {}


@pytest.fixture
def case(
    policy_trainer: Callable[..., Any],
    tiny_base: Path,
    tiny_chat: Chat,
    groups: list[list[Rollout]],
    rewards: list[float],
    known: dict[tuple[float, float, bool], dict[str, Tensor]],
    tmp_path: Path,
) -> Case:
    """Our gradient and TRL's; the last arguments are for ours only."""

    def run(
        coefficient: float, temperature: float, *others: str, whole: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ours = policy_trainer(
            PROMPTS,
            groups,
            rewards,
            "adapter=null" if whole else "adapter.alpha=4",
            "tokens_per_batch=200",
            "algorithm.reduction=sequence_sum",
            "algorithm.unfinished=keep",
            "algorithm.kl.estimator=k1",
            "algorithm.kl.reduction=sum",
            f"algorithm.kl.coefficient={coefficient}",
            f"rollouts.temperature={temperature}",
            *others,
        )
        adapter = {name: p.detach().clone() for name, p in ours.model.named_parameters() if p.requires_grad}
        ours.training_step(ours.model, [ours.train_dataset[place] for place in range(P * G)])
        assert ours.figures["kl/abs_mean"] > 0.1  # far enough from the reference for the penalty to count
        local = gradients(ours.model)
        if (coefficient, temperature, whole) not in known:  # the weights are the same each time
            trainer = trl_trainer(
                tiny_base,
                tiny_chat,
                adapter,
                lambda: rewards,
                tmp_path / "trl",
                coefficient=coefficient,
                temperature=temperature,
                whole=whole,
            )
            give(trainer, groups)
            trainer.training_step(trainer.model, [{"prompt": prompt} for prompt in messages()], None)
            known[coefficient, temperature, whole] = gradients(trainer.model)
        theirs = known[coefficient, temperature, whole]
        layers, factors, outer = 2, 2, 2  # embedding, which is the head too, and the last norm
        assert local.keys() == theirs.keys()
        assert len(local) == (layers * (7 + 2) + outer if whole else layers * 7 * factors)
        return local, theirs

    return run


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|mine - theirs| / |theirs| over all parameters."""
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return float((apart / sum(float(gradient.square().sum()) for gradient in theirs.values())) ** 0.5)


@pytest.mark.parametrize(("coefficient", "temperature"), [(0.0, 1.0), (0.05, 1.0), (0.05, 0.7), (1.0, 1.0)])
def test_the_gradient_of_an_update_is_trls(case: Case, coefficient: float, temperature: float) -> None:
    ours, theirs = case(coefficient, temperature)
    assert distance(ours, theirs) < 1e-5
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize(("coefficient", "temperature"), [(0.05, 0.7), (1.0, 1.0)])
def test_so_it_is_where_all_weights_are_trained(case: Case, coefficient: float, temperature: float) -> None:
    """Norms, embedding and head too; TRL's reference is a second model that it loads by itself."""
    ours, theirs = case(coefficient, temperature, whole=True)
    assert distance(ours, theirs) < 1e-5
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize(
    "other",
    [
        "algorithm.reduction=sequence_mean",
        "algorithm.unfinished=drop",
        "algorithm.kl.estimator=abs",
        "algorithm.kl.reduction=mean",
        "algorithm.kl.coefficient=0.1",
    ],
)
def test_another_setting_is_another_gradient(case: Case, other: str) -> None:
    """The test above can fail."""
    assert distance(*case(0.05, 1.0, other)) > 0.01


def step(model: Any, optimizer: torch.optim.Optimizer) -> float:
    """What transformers does after `training_step`; returns the gradient's norm."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(norm)


@pytest.mark.parametrize(("updates", "epochs"), [pytest.param(3, 1, marks=pytest.mark.slow), (2, 2)])
def test_rloo_is_trls_over_several_updates(
    policy_trainer: Callable[..., Any],
    tiny_base: Path,
    tiny_chat: Chat,
    rewards: list[float],
    tmp_path: Path,
    updates: int,
    epochs: int,
) -> None:
    """Losses, KL, clipped shares, gradient norms and weights.

    A pass after the first has ratios other than 1.
    """
    answers = [draw_groups(tiny_chat, seed) for seed in range(updates)]
    draw = torch.Generator().manual_seed(1)
    scores = [torch.randn(P * G, generator=draw).tolist() for _ in range(updates)]
    ours = policy_trainer(
        PROMPTS,
        answers[0],
        rewards,
        "adapter.alpha=4",
        "tokens_per_batch=200",
        "algorithm={name: rloo}",
        f"algorithm.epochs={epochs}",
    )
    adapter = {name: p.detach().clone() for name, p in ours.model.named_parameters() if p.requires_grad}
    now = iter(scores)
    theirs = trl_trainer(
        tiny_base,
        tiny_chat,
        dict(adapter),
        lambda: next(now),
        tmp_path / "trl",
        coefficient=0.05,  # TRL's default, and what `name: rloo` implies
        temperature=1.0,
        num_iterations=epochs,
    )
    default = RLOOConfig.__dataclass_fields__["beta"].default
    assert (theirs.epsilon_low, theirs.epsilon_high, default) == (0.2, 0.2, 0.05)
    optimizers = [torch.optim.SGD(t.model.parameters(), lr=0.3) for t in (ours, theirs)]
    ours.optimizer = optimizers[0]
    batch = [{"prompt": prompt} for prompt in messages()]
    seen = []
    for groups, reward in zip(answers, scores, strict=True):
        give(theirs, groups)
        losses, clipped, norm = [], [], 0.0
        for _ in range(epochs):
            losses.append(float(theirs.training_step(theirs.model, batch, None)))
            clipped.append(theirs._metrics["train"]["clip_ratio/region_mean"][-1])
            norm = step(theirs.model, optimizers[1])
        ours.engine.generate = lambda *_, given=groups, **__: given
        ours.rewards.of = lambda *_, given=reward: RewardResult(given)
        ours.training_step(ours.model, [ours.train_dataset[place] for place in range(P * G)])
        figures = ours.figures
        assert step(ours.model, optimizers[0]) == pytest.approx(norm, rel=1e-3)
        assert figures["loss/policy"] == pytest.approx(sum(losses) / epochs, rel=1e-3, abs=1e-5)
        assert figures["kl/mean"] == pytest.approx(theirs._metrics["train"]["kl"][-1], rel=1e-3)
        assert figures["ratio/clipped_share"] == pytest.approx(sum(clipped) / epochs, abs=1e-6)
        seen.append(figures)
    moved = 0.0
    trained = dict(ours.model.named_parameters())
    for name, their in theirs.model.named_parameters():
        if their.requires_grad:
            way = (their.detach() - adapter.pop(name)).norm()
            assert (trained[name] - their).norm() < 1e-3 * way, name
            moved += float(way)
    assert not adapter
    assert moved > 0.1
    if epochs > 1:  # or the losses and shares above would have compared zeros
        assert max(abs(figures["loss/policy"]) for figures in seen) > 0.01
        assert max(figures["ratio/clipped_share"] for figures in seen) > 0.05
