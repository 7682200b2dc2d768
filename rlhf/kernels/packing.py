"""Packing: many sequences in few rows of tokens, with shared prefixes computed once.

A `Tree` is a shared prefix (the trunk) and its branches: the prompt and the two responses of a preference, or
a prompt and its sampled answers. Trees are placed one after another in rows, and rows of similar length form
batches of at most `budget` tokens. The common prefix of all trunks of a row (the start of a chat template, a
system prompt) is stored once, at the start of the row. Position ids restart, so that each branch has the
positions it would have alone. By the attention mask a token attends to the common prefix, the trunk of its
tree and the earlier tokens of its branch. The hidden states of a branch therefore equal those of an unpacked
run, up to rounding.

A batch is usually one row: attention computes only what each token attends to (`rlhf.kernels.attention`). A
model with layers that ignore the mask gets one sequence per row, padded on the right
(`rlhf.kernels.packing_check`).

Shapes: R rows, T tokens in a row, N branches (sequences) over all rows, M tokens of branches with a
successor.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kernels.packed_batch import PADDING, SHARED, NextTokens, PackedBatch, Span

CPU_GRAIN, GPU_GRAIN = 16, 128
"""Row lengths are a multiple of this, for few shapes: the tile of matrix kernels, a block of
FlexAttention."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids of a shared prefix and of each branch after it; a branch has at least one token."""

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.branches or not all(self.branches):
            raise ValueError("a tree needs branches, and every branch at least one token")

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of complete sequences: their longest common prefix becomes the trunk."""
        if not sequences or not all(len(ids) for ids in sequences):
            raise ValueError("sequences must not be empty")
        shared = len(os.path.commonprefix([tuple(ids) for ids in sequences]))
        # A branch keeps at least one token, at which the score of its sequence is read.
        shared = min(shared, min(len(ids) for ids in sequences) - 1)
        trunk = tuple(sequences[0][:shared])
        return cls(trunk, tuple(tuple(ids[shared:]) for ids in sequences))

    @property
    def tokens(self) -> int:
        """Tokens this tree takes in a row."""
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of the longest of its sequences."""
        return len(self.trunk) + max(map(len, self.branches))

    @property
    def useful_tokens(self) -> int:
        """Tokens an unpacked, unshared run would process."""
        return len(self.trunk) * len(self.branches) + sum(map(len, self.branches))


def pack(
    trees: Sequence[Tree],
    budget: int,
    *,
    pad_id: int,
    short_row: int | None = None,
    one_per_row: bool = False,
    grain: int | None = None,
) -> Iterator[PackedBatch]:
    """Pack trees into batches of at most `budget` tokens (rounded up to the grain), padding included.

    A tree is never cut: a tree longer than the budget is a batch by itself. Longest first, each tree goes to
    the row with room that it lengthens least, given the prefix it shares with the trees there. Rows are then
    batched by length. Branches of a batch are numbered from 0, in the order of `PackedBatch.trees`.

    Args:
        short_row: most tokens of a row, unless its first tree is longer; by default the whole budget.
        one_per_row: every sequence is a row by itself, trunk included; the rows of a tree share a batch.
        grain: row lengths are a multiple of it; by default `GPU_GRAIN` if there is a GPU, else `CPU_GRAIN`.
    """
    if grain is None:
        grain = GPU_GRAIN if torch.cuda.is_available() else CPU_GRAIN
    if one_per_row:
        yield from _rows_of_one(trees, budget, pad_id, grain)
        return
    rows: list[_Row] = []
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].tokens, i)):
        tree = trees[index]
        # (added tokens, position of the row, the row with the tree)
        options = [
            (longer.tokens - row.tokens, position, longer)
            for position, row in enumerate(rows)
            if (longer := row.with_tree(index, tree))
        ]
        if options:
            _, position, rows[position] = min(options, key=lambda option: option[:2])
        else:
            room = budget if short_row is None else min(short_row, budget)
            rows.append(_Row((index,), tree.trunk, tree.tokens, max(tree.tokens, room)))
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -_rounded(row.tokens, grain)):
        if batch and _rounded(batch[0].tokens, grain) * (len(batch) + 1) > _rounded(budget, grain):
            yield _batch(trees, batch, pad_id, grain)
            batch = []
        batch.append(row)
    if batch:
        yield _batch(trees, batch, pad_id, grain)


def _rows_of_one(trees: Sequence[Tree], budget: int, pad_id: int, grain: int) -> Iterator[PackedBatch]:
    """Batches with one sequence per row, trees of similar length together."""
    batch: list[int] = []
    rows = 0
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].longest, i)):
        added = len(trees[index].branches)
        if batch and _rounded(trees[batch[0]].longest, grain) * (rows + added) > _rounded(budget, grain):
            yield _unshared(trees, sorted(batch), pad_id, grain)
            batch, rows = [], 0
        batch.append(index)
        rows += added
    if batch:
        yield _unshared(trees, sorted(batch), pad_id, grain)


@dataclass(frozen=True, slots=True)
class _Row:
    """The trees of one row, by index."""

    members: tuple[int, ...]
    shared: tuple[int, ...]
    """The common prefix of all their trunks."""
    tokens: int
    room: int
    """Most tokens of the row."""

    def with_tree(self, index: int, tree: Tree) -> _Row | None:
        """The row with one more tree; None if there is no room."""
        most = min(len(self.shared), len(tree.trunk))
        if self.tokens + tree.tokens - most > self.room:
            return None  # even with the longest shared prefix
        shared = tuple(os.path.commonprefix([self.shared, tree.trunk]))
        # A shorter common prefix moves the difference into every tree.
        moved = (len(self.shared) - len(shared)) * (len(self.members) - 1)
        tokens = self.tokens + tree.tokens - len(shared) + moved
        return _Row((*self.members, index), shared, tokens, self.room) if tokens <= self.room else None


def _rounded(length: int, grain: int) -> int:
    """Round up to a multiple of the grain."""
    return length + -length % grain


def _batch(trees: Sequence[Tree], rows: Sequence[_Row], pad_id: int, grain: int) -> PackedBatch:
    members = [sorted(row.members) for row in rows]
    numbers, branches = itertools.count(), itertools.count()
    layouts = [
        _layout([trees[i] for i in indices], row.shared if len(indices) > 1 else (), numbers, branches)
        for row, indices in zip(rows, members, strict=True)
    ]
    tree_order = tuple(index for indices in members for index in indices)
    return _as_tensors(layouts, trees, tree_order, pad_id, grain)


def _unshared(trees: Sequence[Tree], members: Sequence[int], pad_id: int, grain: int) -> PackedBatch:
    numbers, branches = itertools.count(), itertools.count()
    layouts = [
        _layout([Tree(trees[index].trunk, (branch,))], (), numbers, branches)
        for index in members
        for branch in trees[index].branches
    ]
    batch = _as_tensors(layouts, trees, tuple(members), pad_id, grain)
    return dataclasses.replace(batch, one_per_row=True)


def _as_tensors(
    layouts: Sequence[tuple[Mapping[str, list[int]], tuple[Span, ...]]],
    trees: Sequence[Tree],
    tree_order: tuple[int, ...],
    pad_id: int,
    grain: int,
) -> PackedBatch:
    lengths = [len(row["ids"]) for row, _ in layouts]
    width = _rounded(max(lengths), grain)
    padding = {"ids": pad_id, "positions": 0, "tree": PADDING, "branch": -1}
    cells = {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row, _ in layouts])
        for name, value in padding.items()
    }
    last_tokens_N, next_tokens = _indices([row for row, _ in layouts])
    return PackedBatch(
        ids_RT=cells["ids"],
        positions_RT=cells["positions"],
        tree_RT=cells["tree"],
        branch_RT=cells["branch"],
        last_tokens_N=last_tokens_N,
        next_tokens=next_tokens,
        trees=tree_order,
        useful_tokens=sum(trees[index].useful_tokens for index in tree_order),
        computed_tokens=sum(lengths),
        spans=tuple(spans for _, spans in layouts),
    )


def _indices(rows: Sequence[Mapping[str, list[int]]]) -> tuple[tuple[Tensor, Tensor], NextTokens]:
    """The last token of each branch, and the tokens with a successor in their branch."""
    last: dict[int, tuple[int, int]] = {}
    followed: list[tuple[int, int, int, int]] = []
    for place, row in enumerate(rows):
        ids, branches = row["ids"], row["branch"]
        for column, branch in enumerate(branches):
            if branch < 0:
                continue
            last[branch] = place, column
            if column + 1 < len(ids) and branches[column + 1] == branch:
                followed.append((place, column, ids[column + 1], branch))
    rows_N, columns_N = torch.tensor([last[branch] for branch in range(len(last))]).unbind(1)
    four = torch.tensor(followed, dtype=torch.long).view(-1, 4).T.contiguous()
    return (rows_N.contiguous(), columns_N.contiguous()), NextTokens(*four)


def _layout(
    trees: Sequence[Tree], shared: tuple[int, ...], numbers: Iterator[int], branches: Iterator[int]
) -> tuple[dict[str, list[int]], tuple[Span, ...]]:
    """The cells of a row and its spans; trees and branches take the next numbers of the batch's counters."""
    cells: dict[str, list[int]] = {"ids": [], "positions": [], "tree": [], "branch": []}
    spans: list[Span] = []

    def add(
        ids: tuple[int, ...], position: int, tree: int, branch: int, sees: tuple[slice, ...]
    ) -> tuple[slice, ...]:
        """Append ids; return what later tokens of the same branch attend to."""
        start = len(cells["ids"])
        if not ids:
            return sees
        cells["ids"] += ids
        cells["positions"] += range(position, position + len(ids))
        cells["tree"] += [tree] * len(ids)
        cells["branch"] += [branch] * len(ids)
        spans.append(Span(start, start + len(ids), sees))
        return (*sees, slice(start, start + len(ids)))

    prefix = add(shared, 0, SHARED, -1, ())
    for tree in trees:
        number = next(numbers)
        trunk = add(tree.trunk[len(shared) :], len(shared), number, -1, prefix)
        for branch in tree.branches:
            add(branch, len(tree.trunk), number, next(branches), trunk)
    return cells, tuple(spans)
