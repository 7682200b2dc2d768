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
    sequences = chat.conversations_ids(_conversations(preferences, ratings))
    for preference in preferences:
        tree = Tree.of_sequences([next(sequences), next(sequences)])
        targets = (_row(preference.ratings_1, attributes), _row(preference.ratings_2, attributes))
        items.append(Item(tree, targets, preference.strength, preference.source))
    for rating in ratings:
        tree = Tree.of_sequences([next(sequences)])
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
    sides = _conversations([preference], [])
    return all(len(chat.conversation_ids(side)) <= max_length for side in sides)


def singles(item: Item) -> list[Item]:
    """The responses of an item, each for itself with its ratings: what a loss that compares nothing draws.

    So a batch of 128 is 128 responses, drawn apart, whether or not there is a preference between two of them.
    """
    if len(item.ratings) == 1:
        return [item]
    trunk = item.tree.trunk
    return [
        Item(Tree.of_sequences([trunk + branch]), (row,), 0, item.source)
        for branch, row in zip(item.tree.branches, item.ratings, strict=True)
    ]


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


def _conversations(preferences: Sequence[Preference], ratings: Sequence[Rating]) -> Iterator[Conversation]:
    """What is scored: both sides of every pair, then every rated response."""
    for pair in preferences:
        yield (*pair.prompt, Message("assistant", pair.response_1))
        yield (*pair.prompt, Message("assistant", pair.response_2))
    for rating in ratings:
        yield (*rating.prompt, Message("assistant", rating.response))


def _row(ratings: Mapping[str, float], attributes: Sequence[str]) -> tuple[float | None, ...]:
    return tuple(ratings.get(name) for name in attributes)
