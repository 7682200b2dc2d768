"""A justifier from its folder as a judge in this process: it writes its texts by greedy decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from reward.judge.client import Completion
from reward.judge.forms import JUSTIFIER
from reward.judge.judge import Judge
from reward.scorer import default_budget, require_length
from rlhf.adapters.storage import Adapter
from rlhf.config.judge import JudgeConfig
from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, autocast, base_of
from rlhf.models.names import POLICY
from rlhf.models.trunk import load_trunk_of
from rlhf.runs.gpu_memory import phase

CARD = "justifier.json"
WRITING_FACTOR = 8
"""Tokens of a writing batch for each token of a scoring pass. A decoding step reads all weights for one token
a text and holds no logits of the prompt, so wide batches pay."""


def read_justifier(folder: Path) -> Adapter:
    """What `final/` of a justifier run holds beside its tokenizer.

    Raises:
        ModelError: not a justifier, or a file is torn.
    """
    return Adapter.read(folder, kind=JUSTIFIER, card=CARD, command="train-justifier")


class LocalWriter:
    """Writes a justification for each request."""

    def __init__(self, model: PeftModel, chat: Chat, *, max_new_tokens: int, budget: int) -> None:
        self.model, self.chat = model.eval(), chat
        self.max_new_tokens, self.budget = max_new_tokens, budget

    def complete(self, requests: Sequence[str]) -> list[Completion]:
        """One text for each request, in their order.

        Raises:
            DataError: a request is longer than the base's context.
        """
        ids = [self.chat.prompt_ids((Message("user", request),)) for request in requests]
        context = base_of(self.model).config.get_text_config().max_position_embeddings
        require_length(ids, context - self.max_new_tokens)
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        completions: dict[int, Completion] = {}
        while order:
            count = max(1, self.budget // (len(ids[order[0]]) + self.max_new_tokens))
            batch, order = order[:count], order[count:]
            completions.update(zip(batch, self._write([ids[place] for place in batch]), strict=True))
        return [completions[place] for place in range(len(ids))]

    @torch.inference_mode()
    @phase("rollouts")
    def _write(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        started = time.perf_counter()
        longest, pad = max(map(len, prompts)), self.chat.pad_id
        padded = [[pad] * (longest - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self.model.device
        with autocast(base_of(self.model)):
            written = self.model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                eos_token_id=list(self.chat.stop_ids),
                pad_token_id=pad,
            )
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Completion(self.chat.decode(answer), len(ids), self._length(answer), seconds)
            for answer, ids in zip(written[:, longest:].tolist(), prompts, strict=True)
        ]

    def _length(self, answer: Sequence[int]) -> int:
        """Tokens up to the first stop token, which is one of them."""
        stops = self.chat.stop_ids
        return next((place for place, token in enumerate(answer, 1) if token in stops), len(answer))


def load_justifier(
    folder: Path, *, max_new_tokens: int | None = None, tokens_per_batch: int | None = None
) -> Judge:
    """A justifier as a judge that compares all pairs of a group in both orders.

    Raises:
        ModelError: no justifier there, or its base cannot be loaded.
    """
    adapter = read_justifier(folder)
    card = adapter.card
    chat = Chat.beside(folder, card)
    base = load_trunk_of(card)
    adapter.check_template(chat)
    writer = LocalWriter(
        adapter.attach(base, POLICY),
        chat,
        max_new_tokens=max_new_tokens or card["max_new_tokens"],
        budget=tokens_per_batch or WRITING_FACTOR * default_budget(),
    )
    config = JudgeConfig(url="http://localhost", model=str(folder), form="justifier", pairing="all")
    return Judge(config, client=writer)
