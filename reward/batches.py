"""Records -> items with token ids and targets -> packed batches.

An item is what one draw of the sampler gives: a pair of responses with its strength, ratings of either, or both; or a
single rated response. Its sequences share their beginning in one `Tree`.

Shapes: N responses, A attributes, B pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.chat import Chat
from rlhf.core.packing import PackedBatch, Tree, pack
from rlhf.core.records import Conversation, Message, Preference, Rating
from rlhf.data.drops import DropReport

TOO_LONG = "longer than model.max_length"


@dataclass(frozen=True, slots=True)
class Item:
    """One pair or one rated response, as ids and targets; `strength` is 0 where there is no pair."""

    tree: Tree
    ratings: tuple[tuple[float | None, ...], ...]
    strength: int = 0
    source: str = ""

    @property
    def rows(self) -> int:
        """Rows it was made of: a pair's own, and one for each of its responses that a rating was joined to."""
        rated = sum(any(value is not None for value in row) for row in self.ratings)
        return rated + 1 if self.strength else 1


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """A packed batch and its targets."""

    packed: PackedBatch
    ratings_NA: Tensor
    present_NA: Tensor
    chosen_B: Tensor
    """Indices into N."""
    rejected_B: Tensor
    strength_B: Tensor
    """|strength| in {1, 2, 3}."""


def make_items(
    preferences: Sequence[Preference],
    ratings: Sequence[Rating],
    chat: Chat,
    *,
    attributes: Sequence[str],
    max_length: int,
    report: DropReport,
) -> list[Item]:
    """Tokenise records; what is longer than `max_length` is dropped and counted in `report`."""
    items = []
    for preference in preferences:
        tree = _pair_tree(chat, preference)
        targets = (_row(preference.ratings_1, attributes), _row(preference.ratings_2, attributes))
        items.append(Item(tree, targets, preference.strength, preference.source))
    for rating in ratings:
        tree = _tree(chat, rating.prompt, (rating.response,))
        items.append(Item(tree, (_row(rating.ratings, attributes),), 0, rating.source))
    kept = []
    for item in items:
        if item.tree.longest > max_length:
            for _ in range(item.rows):
                report.drop(TOO_LONG, item.source or "a row")
        else:
            kept.append(item)
    return kept


def fits(preference: Preference, chat: Chat, max_length: int) -> bool:
    """Whether both sides of a pair are at most `max_length` tokens long."""
    return _pair_tree(chat, preference).longest <= max_length


def batches(items: Sequence[Item], budget: int, *, pad_id: int) -> Iterator[RewardBatch]:
    """Pack items into batches of at most `budget` tokens; each item is in exactly one."""
    for packed in pack([item.tree for item in items], budget, pad_id=pad_id):
        yield _with_targets(packed, [items[index] for index in packed.trees])


def _with_targets(packed: PackedBatch, members: Sequence[Item]) -> RewardBatch:
    rows = [row for item in members for row in item.ratings]
    chosen: list[int] = []
    rejected: list[int] = []
    strength: list[int] = []
    first = 0
    for item in members:
        if item.strength:
            better = 1 if item.strength > 0 else 0  # positive: the second response is preferred
            chosen.append(first + better)
            rejected.append(first + 1 - better)
            strength.append(abs(item.strength))
        first += len(item.ratings)
    return RewardBatch(
        packed=packed,
        ratings_NA=torch.tensor([[0.0 if value is None else value for value in row] for row in rows]),
        present_NA=torch.tensor([[value is not None for value in row] for row in rows]),
        chosen_B=torch.tensor(chosen, dtype=torch.long),
        rejected_B=torch.tensor(rejected, dtype=torch.long),
        strength_B=torch.tensor(strength, dtype=torch.float32),
    )


def _pair_tree(chat: Chat, preference: Preference) -> Tree:
    return _tree(chat, preference.prompt, (preference.response_1, preference.response_2))


def _tree(chat: Chat, prompt: Conversation, responses: Sequence[str]) -> Tree:
    return Tree.of_sequences(
        [chat.conversation_ids((*prompt, Message("assistant", response))) for response in responses]
    )


def _row(ratings: Mapping[str, float], attributes: Sequence[str]) -> tuple[float | None, ...]:
    return tuple(ratings.get(name) for name in attributes)
