"""Records -> items with token ids and targets -> packed batches.

An item is what one draw of the sampler gives: a pair of responses with its strength, ratings of either, or
both; or a single rated response. Its sequences share their beginning in one `Tree`.

Shapes: N responses, A attributes, B pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Preference, Rating
from rlhf.data.drops import DropReport, place_of
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SAME_IDS

TOO_LONG = "longer than model.max_length"


@dataclass(frozen=True, slots=True)
class Item:
    """One pair or one rated response, as ids and targets; `strength` is 0 where there is no pair."""

    tree: Tree
    ratings: tuple[tuple[float | None, ...], ...]
    strength: int = 0
    source: str = ""


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
    """Tokenize records.

    Records that the chat template refuses, or with more than `max_length` tokens, are dropped and counted.
    """
    sequences = chat.conversations_ids(_conversations(preferences, ratings))
    kept: list[Item] = []

    def add(
        record: Preference | Rating, targets: tuple[tuple[float | None, ...], ...], strength: int = 0
    ) -> None:
        sides = _usable(itertools.islice(sequences, len(targets)), max_length)
        if isinstance(sides, str):
            for _ in range(_rows(targets, strength)):
                report.drop(sides, place_of(record))
        else:
            kept.append(Item(Tree.of_sequences(sides), targets, strength, record.source))

    for preference in preferences:
        targets = (_row(preference.ratings_1, attributes), _row(preference.ratings_2, attributes))
        add(preference, targets, preference.strength)
    for rating in ratings:
        add(rating, (_row(rating.ratings, attributes),))
    return kept


def faults(preferences: Sequence[Preference], chat: Chat, max_length: int) -> Iterator[str | None]:
    """The reason why each pair cannot be used, or None."""
    sequences = chat.conversations_ids(_conversations(preferences, []))
    for _ in preferences:
        sides = _usable(itertools.islice(sequences, 2), max_length)
        yield sides if isinstance(sides, str) else None


def _usable(sides: Iterable[list[int] | RefusalError], max_length: int) -> list[list[int]] | str:
    """The ids of both sides of a pair, or of a response alone; or why they cannot be used."""
    all_ids = list(sides)  # the iterator must advance past all of them
    kept = []
    for ids in all_ids:
        if isinstance(ids, RefusalError):
            return ids.reason
        if len(ids) > max_length:
            return TOO_LONG
        kept.append(ids)
    if len(kept) == 2 and kept[0] == kept[1]:
        return SAME_IDS
    return kept


def singles(item: Item) -> list[Item]:
    """The responses of an item as items of their own, for a loss that compares nothing.

    A batch of 128 is then 128 responses, drawn independently, whether or not two of them have a preference.
    """
    if len(item.ratings) == 1:
        return [item]
    trunk = item.tree.trunk
    return [
        Item(Tree.of_sequences([trunk + branch]), (row,), 0, item.source)
        for branch, row in zip(item.tree.branches, item.ratings, strict=True)
    ]


def batches(
    items: Sequence[Item], budget: int, *, pad_id: int, one_per_row: bool = False
) -> Iterator[RewardBatch]:
    """Pack items into batches of at most `budget` tokens; each item is in exactly one.

    Args:
        one_per_row: no two responses share a row, see `rlhf.kernels.packing_check`.
    """
    for packed in pack([item.tree for item in items], budget, pad_id=pad_id, one_per_row=one_per_row):
        members = [items[index] for index in packed.trees]
        yield _with_targets(packed.without_next_tokens(), members)


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
        for response in pair.messages:
            yield (*pair.prompt, response)
    for rating in ratings:
        yield (*rating.prompt, rating.message)


def _rows(ratings: Sequence[Sequence[float | None]], strength: int) -> int:
    """The number of data rows behind an item: one of the pair, and one per joined rating."""
    rated = sum(any(value is not None for value in row) for row in ratings)
    return rated + 1 if strength else 1


def _row(ratings: Mapping[str, float], attributes: Sequence[str]) -> tuple[float | None, ...]:
    return tuple(ratings.get(name) for name in attributes)
