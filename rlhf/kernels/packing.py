"""Packing: many sequences in few rows of tokens, what they share computed once.

A `Tree` is a shared beginning and its branches: the prompt and the two responses of a preference, or a prompt and its
sampled answers. Trees are laid one after another into rows, and rows of like length into batches of at most `budget` tokens.
What the trunks of a row all begin with (a chat template's opening words, a system prompt) stands once, at its start.
Position ids restart, so that each branch sits where it would sit alone; the attention mask lets a token see that beginning, the
trunk of its own tree and the earlier tokens of its own branch, and nothing else. Every branch so gets exactly the hidden states
of an unpacked run, up to the rounding of the number format.

On a CPU a batch is one row, since attention there computes what each token sees and no more (`rlhf.kernels.attention`). A GPU's
kernels take a dense mask, which costs the square of the row: rows there are short, about as long as the longest tree.

Shapes: R rows, T tokens in a row, N branches (sequences) over all rows.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORT_ROW = 256
"""Where attention costs the square of a row, trees shorter than this share one: below it, that is little beside the products."""

PADDING, SHARED = -1, -2
"""In the place of a tree's number: tokens of none, and tokens that all trees of a row begin with."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids of a shared beginning, and of what follows it in each branch; a branch has at least one token."""

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.branches or not all(self.branches):
            raise ValueError("a tree needs branches, and every branch at least one token")

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of whole sequences: their longest common beginning becomes the trunk."""
        if not sequences or not all(len(ids) for ids in sequences):
            raise ValueError("sequences must not be empty")
        shared = len(os.path.commonprefix([tuple(ids) for ids in sequences]))
        # A branch keeps at least one token: the score of a sequence is read at a token of its own.
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


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of a row that follow one another: a beginning, a trunk or a branch; and those that it sees before them."""

    start: int
    stop: int
    sees: tuple[slice, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows ready for a forward pass. Branches are numbered in the order of the trees given to `pack`."""

    ids_RT: Tensor
    positions_RT: Tensor
    tree_RT: Tensor
    """Number of the tree a token belongs to; `PADDING`, or `SHARED` where all of the row begin with it."""
    branch_RT: Tensor
    """Number of the branch over the whole batch; -1 is none: a trunk, what is shared, or padding."""
    trees: tuple[int, ...]
    """Which of the trees given to `pack` are here, by their index, in the order of `branch_RT`."""
    useful_tokens: int
    spans: tuple[tuple[Span, ...], ...] = ()
    """Beginnings, trunks and branches of each row, from left to right: what the mask says, by where it changes."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that are computed, padding left out."""
        return int((self.tree_RT != PADDING).sum())

    def mask_R1TT(self) -> Tensor:
        """The attention mask, True where a token may look: [R, 1, T query, T key]."""
        # In place: the square of a long row is large.
        sees_RTT = self.branch_RT[:, :, None] == self.branch_RT[:, None, :]
        sees_RTT |= (self.branch_RT == -1)[:, None, :]
        sees_RTT &= self.tree_RT[:, :, None] == self.tree_RT[:, None, :]
        sees_RTT |= (self.tree_RT != PADDING)[:, :, None] & (self.tree_RT == SHARED)[:, None, :]
        return sees_RTT.tril_()[:, None]

    def last_tokens_N(self) -> tuple[Tensor, Tensor]:
        """Row and column of the last token of each branch."""
        rows, columns = torch.nonzero(self.branch_RT >= 0, as_tuple=True)
        branches = self.branch_RT[rows, columns]
        # nonzero walks row by row, left to right: the last write of a branch is its last token.
        order = torch.arange(len(branches), device=branches.device)
        last_N = torch.zeros(int(branches.max()) + 1, dtype=torch.long, device=branches.device)
        last_N.scatter_reduce_(0, branches, order, reduce="amax")
        return rows[last_N], columns[last_N]

    def next_ids_RT(self) -> Tensor:
        """For each token the id that follows it in its own branch; -100 in trunks, at ends of branches and in padding.

        For the first token of a branch to have a predictor, the trunk must end one token before the prompt does.
        """
        following = torch.full_like(self.ids_RT, -100)
        same = (self.branch_RT[:, :-1] == self.branch_RT[:, 1:]) & (self.branch_RT[:, :-1] >= 0)
        following[:, :-1][same] = self.ids_RT[:, 1:][same]
        return following

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(
            ids_RT=self.ids_RT.to(device),
            positions_RT=self.positions_RT.to(device),
            tree_RT=self.tree_RT.to(device),
            branch_RT=self.branch_RT.to(device),
            trees=self.trees,
            useful_tokens=self.useful_tokens,
            spans=self.spans,
        )


def pack(
    trees: Sequence[Tree], budget: int, *, pad_id: int, short_row: int | None = None
) -> Iterator[PackedBatch]:
    """Lay trees into batches of at most `budget` tokens (rounded up to 16), padding included.

    A tree is never cut: one that is longer than the budget is a batch of its own. Longest first, each tree goes to the row with room
    that it lengthens least, by what it shares with the trees there; a new row has room for its first tree, or for `short_row`
    tokens (by default the whole budget, and `SHORT_ROW` where there is a GPU). Rows are then batched in order of length.
    Branches of a batch are numbered from 0, in the order of `PackedBatch.trees`.
    """
    if short_row is None:
        short_row = SHORT_ROW if torch.cuda.is_available() else budget
    rows: list[_Row] = []
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].tokens, i)):
        tree = trees[index]
        longer = [(one, place) for place, row in enumerate(rows) if (one := row.joined_by(index, tree))]
        if longer:
            row, place = min(longer, key=lambda found: (found[0].tokens - rows[found[1]].tokens, found[1]))
            rows[place] = row
        else:
            rows.append(_Row((index,), tree.trunk, tree.tokens, max(tree.tokens, min(short_row, budget))))
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -_rounded(row.tokens)):
        if batch and _rounded(batch[0].tokens) * (len(batch) + 1) > _rounded(budget):
            yield _batch(trees, batch, pad_id)
            batch = []
        batch.append(row)
    if batch:
        yield _batch(trees, batch, pad_id)


@dataclass(frozen=True, slots=True)
class _Row:
    """Trees, by their index, that will stand in one row."""

    members: tuple[int, ...]
    shared: tuple[int, ...]
    """What all their trunks begin with."""
    tokens: int
    room: int
    """The most tokens it may have."""

    def joined_by(self, index: int, tree: Tree) -> _Row | None:
        """The row with one more tree; None if there is no room for it."""
        most = min(len(self.shared), len(tree.trunk))
        if self.tokens + tree.tokens - most > self.room:
            return None  # whatever they share
        shared = tuple(os.path.commonprefix([self.shared, tree.trunk]))
        # One beginning less for each tree, but what is shared with fewer tokens stands in each.
        apart = (len(self.shared) - len(shared)) * (len(self.members) - 1)
        tokens = self.tokens + tree.tokens - len(shared) + apart
        return _Row((*self.members, index), shared, tokens, self.room) if tokens <= self.room else None


def _rounded(length: int) -> int:
    """Up to a multiple of 16, the grain of the matrix kernels, so that few shapes exist."""
    return length + -length % 16


def _batch(trees: Sequence[Tree], rows: Sequence[_Row], pad_id: int) -> PackedBatch:
    length = _rounded(max(row.tokens for row in rows))
    members = [sorted(row.members) for row in rows]
    laid = []
    numbers, branches = itertools.count(), itertools.count()
    for row, indices in zip(rows, members, strict=True):
        shared = row.shared if len(indices) > 1 else ()
        laid.append(_lay([trees[index] for index in indices], shared, numbers, branches))
    padding = {"ids": pad_id, "positions": 0, "tree": PADDING, "branch": -1}
    cells = {
        name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row, _ in laid])
        for name, value in padding.items()
    }
    in_order = tuple(index for indices in members for index in indices)
    return PackedBatch(
        ids_RT=cells["ids"],
        positions_RT=cells["positions"],
        tree_RT=cells["tree"],
        branch_RT=cells["branch"],
        trees=in_order,
        useful_tokens=sum(trees[index].useful_tokens for index in in_order),
        spans=tuple(spans for _, spans in laid),
    )


def _lay(
    trees: Sequence[Tree], shared: tuple[int, ...], numbers: Iterator[int], branches: Iterator[int]
) -> tuple[dict[str, list[int]], tuple[Span, ...]]:
    """The cells of a row, and its spans; trees and branches take their numbers from what counts them over the batch."""
    cells: dict[str, list[int]] = {"ids": [], "positions": [], "tree": [], "branch": []}
    spans: list[Span] = []

    def add(
        ids: tuple[int, ...], position: int, tree: int, branch: int, sees: tuple[slice, ...]
    ) -> tuple[slice, ...]:
        """Lay down ids; what follows them sees what they see, and them."""
        start = len(cells["ids"])
        if not ids:
            return sees
        cells["ids"] += ids
        cells["positions"] += range(position, position + len(ids))
        cells["tree"] += [tree] * len(ids)
        cells["branch"] += [branch] * len(ids)
        spans.append(Span(start, start + len(ids), sees))
        return (*sees, slice(start, start + len(ids)))

    beginning = add(shared, 0, SHARED, -1, ())
    for tree in trees:
        number = next(numbers)
        trunk = add(tree.trunk[len(shared) :], len(shared), number, -1, beginning)
        for branch in tree.branches:
            add(branch, len(tree.trunk), number, next(branches), trunk)
    return cells, tuple(spans)
