"""One update of ours against one of TRL's own RLOOTrainer: same adapter, prompts, answers and rewards."""

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

from rlhf.core.chat import Chat
from rlhf.core.models import load_causal, lora_config
from rlhf.core.records import Conversation, Message, Rollout

P, G = 3, 4
PROMPTS: list[Conversation] = [
    (Message("user", "Hi."),),
    (Message("system", "Be brief."), Message("user", "Name a colour, and say why it is one.")),
    (Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?")),
]


@pytest.fixture(scope="module")
def groups(tiny_chat: Chat) -> list[list[Rollout]]:
    """Answers of 1 to 15 tokens; two of each group are cut off, and one is a lone stop token."""
    draw = random.Random(0)
    stop = tiny_chat.stop_ids[0]

    def rollout(prompt: Conversation, g: int) -> Rollout:
        ids = [draw.randrange(100, 40_000) for _ in range(draw.randint(1, 14))]
        ids = [ids, [*ids, stop], [stop], ids][g]
        return Rollout(
            tuple(tiny_chat.prompt_ids(prompt)), tuple(ids), (), ids[-1] == stop, tiny_chat.decode(ids)
        )

    return [[rollout(prompt, g) for g in range(G)] for prompt in PROMPTS]


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


def trl_gradients(
    base: Path,
    chat: Chat,
    adapter: dict[str, Tensor],
    groups: list[list[Rollout]],
    rewards: list[float],
    folder: Path,
    *,
    coefficient: float,
    temperature: float,
) -> dict[str, Tensor]:
    """The gradient of one `training_step` of TRL's."""
    rollouts = [rollout for group in groups for rollout in group]
    dicts = [[{"role": m.role, "content": m.content} for m in prompt] for prompt in PROMPTS for _ in range(G)]
    trainer = GivenAnswers(
        model=load_causal(str(base), revision=None, dtype="float32", quantization="none"),
        reward_funcs=lambda completions, **_: rewards,
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
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in dicts]),
        processing_class=copy.deepcopy(chat.tokenizer),
        peft_config=lora_config(rank=4, alpha=4.0, dropout=0.0, targets="all-linear"),
    )
    trainer.answers = [list(rollout.completion_ids) for rollout in rollouts]
    trainer.expected_prompts = [list(rollout.prompt_ids) for rollout in rollouts]
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter.pop(name))
    assert not adapter
    trainer.current_gradient_accumulation_steps = 1  # `train` sets it
    trainer.training_step(trainer.model, [{"prompt": prompt} for prompt in dicts], None)
    return gradients(trainer.model)


Case = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture(scope="module")
def known() -> dict[tuple[float, float], dict[str, Tensor]]:
    """TRL's gradients by coefficient and temperature."""
    return {}


@pytest.fixture
def case(
    policy_trainer: Callable[..., Any],
    tiny_base: Path,
    tiny_chat: Chat,
    groups: list[list[Rollout]],
    rewards: list[float],
    known: dict[tuple[float, float], dict[str, Tensor]],
    tmp_path: Path,
) -> Case:
    """Our gradient and TRL's; what is told to ours only comes last."""

    def run(
        coefficient: float, temperature: float, *others: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ours = policy_trainer(
            PROMPTS,
            groups,
            rewards,
            "adapter.alpha=4",
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
        mine = gradients(ours.model)
        if (coefficient, temperature) not in known:  # the adapter is the same each time
            known[coefficient, temperature] = trl_gradients(
                tiny_base,
                tiny_chat,
                adapter,
                groups,
                rewards,
                tmp_path / "trl",
                coefficient=coefficient,
                temperature=temperature,
            )
        theirs = known[coefficient, temperature]
        assert mine.keys() == theirs.keys() and len(mine) == 2 * 7 * 2
        return mine, theirs

    return run


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|mine - theirs| / |theirs| over all parameters."""
    apart = sum(float((mine[name] - theirs[name]).square().sum()) for name in theirs)
    return float((apart / sum(float(gradient.square().sum()) for gradient in theirs.values())) ** 0.5)


@pytest.mark.parametrize(("coefficient", "temperature"), [(0.0, 1.0), (0.05, 1.0), (0.05, 0.7), (1.0, 1.0)])
def test_the_gradient_of_an_update_is_trls(case: Case, coefficient: float, temperature: float) -> None:
    mine, theirs = case(coefficient, temperature)
    assert distance(mine, theirs) < 1e-5
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (mine[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize(
    "other",
    [
        "algorithm.reduction=token_mean",
        "algorithm.unfinished=drop",
        "algorithm.kl.estimator=abs",
        "algorithm.kl.reduction=mean",
        "algorithm.kl.coefficient=0.1",
    ],
)
def test_another_setting_is_another_gradient(case: Case, other: str) -> None:
    """The test above can fail."""
    assert distance(*case(0.05, 1.0, other)) > 0.01
