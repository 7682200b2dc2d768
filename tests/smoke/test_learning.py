"""A toy task through the real loop: the reward is the share of tokens in one half of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from policy.rewards.protocol import RewardResult
from policy.rollouts.protocol import Sampling
from policy.rollouts.transformers_engine import TransformersEngine
from policy.training.build import build_trainer
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.core.records import Message, Prompt, Rollout
from rlhf.models.chat import Chat

PROMPTS = [Prompt((Message("user", f"Say {word}."),)) for word in ("this", "that", "more", "less")]
UPDATES, LAST = 14, 3


class ShareOfGoodIds:
    """Rewards an answer by its ids: a text may be tokenised in more than one way."""

    def __init__(self, good: Tensor) -> None:
        self.good = good

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RewardResult:
        assert len(prompts) == len(rollouts)
        return RewardResult([float(self.good[list(r.completion_ids)].float().mean()) for r in rollouts])


@pytest.mark.parametrize(
    "algorithm",
    [
        "{unfinished: keep}",
        pytest.param("{compat: true}", marks=pytest.mark.slow),
        pytest.param("{name: rloo}", marks=pytest.mark.slow),
        "{name: ppo, unfinished: keep, critic: {learning_rate: 1.0e-2}}",
    ],
)
def test_the_reward_rises(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, tmp_path: Path, algorithm: str
) -> None:
    """A policy that draws ids without regard to the reward has 0.5; in a few updates it must have 0.7."""
    file = tmp_path / "policy.yaml"
    file.write_text(f"""
output: unused
reward: {tiny_reward}
model: {{base: {tiny_base}, dtype: float32, max_length: 64}}
adapter: {{rank: 4, alpha: 8}}
data: {{prompts: [{{path: demo}}], max_prompt_tokens: 40}}
rollouts: {{engine: transformers, prompts_per_step: 2, samples_per_prompt: 16, max_new_tokens: 4}}
optimizer: {{learning_rate: 5.0e-2, warmup_steps: 0}}
steps: {UPDATES}
save_every: 1000
tokens_per_batch: 2048
algorithm: {algorithm}
""")
    config = load_config(file, PolicyConfig)
    rewards: list[float] = []
    run: Any = SimpleNamespace(
        checkpoints=tmp_path / "checkpoints",
        metrics=lambda step, figures: rewards.append(figures["reward/mean"]),
        samples=lambda rows: None,
    )
    trainer = build_trainer(config, tiny_chat, PROMPTS, run)
    # Half of the words, and learnable: the head is the embedding, so one hidden unit raises them all.
    good = trainer.model.get_input_embeddings().weight[:, 0] > 0
    # Every fifth id ends an answer, so that `compat` has finished answers to learn from.
    stops = tuple(range(0, len(good), 5)) if "compat" in algorithm else tiny_chat.stop_ids
    trainer.engine = TransformersEngine(Sampling(4, 1.0, stops), tiny_chat)
    trainer.rewards = ShareOfGoodIds(good)
    trainer.train()
    assert len(rewards) == UPDATES
    assert rewards[0] == pytest.approx(0.5, abs=0.2)
    assert sum(rewards[-LAST:]) / LAST > 0.7, rewards
