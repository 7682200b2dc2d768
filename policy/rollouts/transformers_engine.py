"""Rollouts by transformers' own `generate`, on the trainer's model: no second copy of the base, and no speed."""

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
    """Samples with the model it was last synced with; the model is the trainer's, so there is nothing to copy.

    It does not report log-probabilities: they would be the trainer's own.
    """

    def __init__(self, sampling: Sampling, chat: Chat) -> None:
        self.sampling, self.chat = sampling, chat
        self.model: PeftModel | PreTrainedModel | None = None
        self.streamer: Any = None  # hears each token of a single answer, see transformers' TextStreamer

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Remember the model; its weights are already there."""
        self.model = model

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """One padded batch of all prompts and samples; at temperature 0 each token is the likeliest."""
        if self.model is None:
            raise EngineError("generate was called before sync.")
        repeated = [list(ids) for ids in prompts for _ in range(samples)]
        width = max(map(len, repeated))
        device = compute_device(self.model)
        input_ids = torch.tensor(
            [[self.chat.pad_id] * (width - len(ids)) + ids for ids in repeated], device=device
        )
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in repeated], device=device)
        drawing: dict[str, Any] = {"do_sample": False}
        if self.sampling.temperature > 0:
            drawing = {"do_sample": True, "temperature": self.sampling.temperature, "top_k": 0, "top_p": 1.0}
        was_training = self.model.training
        devices = [device] if device.type == "cuda" else []  # not the generators of GPUs that are not ours
        self.model.eval()
        with torch.random.fork_rng(devices), inference_mode(self.model), autocast(self.model):
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                **drawing,
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
        """None."""
        return {}

    def _cut(self, ids: list[int]) -> list[int]:
        """Up to and including the first stop id; what follows is padding."""
        end = next(
            (place + 1 for place, token in enumerate(ids) if token in self.sampling.stop_ids), len(ids)
        )
        return ids[:end]
