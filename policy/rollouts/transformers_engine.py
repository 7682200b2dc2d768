"""Rollouts by transformers' `generate` on the trainer's model: slow, without a second copy of the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from policy.rollouts.protocol import Sampling, as_rollout
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.distributed.sharding import compute_device, inference_mode
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, autocast


class TransformersEngine:
    """Samples with the trainer's model; reports no log-probabilities, which would be the trainer's own."""

    def __init__(self, sampling: Sampling, chat: Chat) -> None:
        self.sampling, self.chat = sampling, chat
        self.model: PeftModel | PreTrainedModel | None = None
        self.streamer: Any = None  # a transformers TextStreamer for a single answer

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Keep a reference to the model."""
        self.model = model

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """Sample all prompts in one padded batch; greedily at temperature 0."""
        if self.model is None:
            raise EngineError("generate was called before sync.")
        repeated = [list(ids) for ids in prompts for _ in range(samples)]
        width = max(map(len, repeated))
        device = compute_device(self.model)
        input_ids = torch.tensor(
            [[self.chat.pad_id] * (width - len(ids)) + ids for ids in repeated], device=device
        )
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in repeated], device=device)
        options: dict[str, Any] = {"do_sample": False}
        if self.sampling.temperature > 0:
            options = {"do_sample": True, "temperature": self.sampling.temperature, "top_k": 0, "top_p": 1.0}
        was_training = self.model.training
        devices = [device] if device.type == "cuda" else []  # generators of other GPUs stay untouched
        self.model.eval()
        with torch.random.fork_rng(devices), inference_mode(self.model), autocast(self.model):
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                **options,
                max_new_tokens=self.sampling.max_new_tokens,
                eos_token_id=list(self.sampling.stop_ids),
                pad_token_id=self.chat.pad_id,
                streamer=self.streamer,
            )
        self.model.train(was_training)
        answers = [self._cut(row) for row in output[:, width:].tolist()]
        rollouts = [
            as_rollout(ids, answer, (), self.sampling.stop_ids, self.chat)
            for ids, answer in zip(repeated, answers, strict=True)
        ]
        return [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]

    def figures(self) -> dict[str, float]:
        """No figures."""
        return {}

    def _cut(self, ids: list[int]) -> list[int]:
        """The ids up to and including the first stop id; the rest is padding."""
        end = next(
            (index + 1 for index, token in enumerate(ids) if token in self.sampling.stop_ids), len(ids)
        )
        return ids[:end]
