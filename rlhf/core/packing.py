"""Packing: many sequences in few rows of tokens, what they share computed once.

A `Tree` is a shared beginning and its branches: the prompt and the two responses of a preference, or a prompt and its
sampled answers. Trees are laid one after another into rows, and rows of like length into batches of at most `budget` tokens.
Position ids restart, so that each branch sits where it would sit alone; the attention mask lets a token see the trunk of its
own tree and the earlier tokens of its own branch, and nothing else. Every branch so gets exactly the hidden states of an
unpacked run, up to the rounding of the number format.

On a CPU a batch is one row, since attention there computes what each token sees and no more (`rlhf.core.attention`). A GPU's
kernels take a dense mask, which costs the square of the row: rows there are short, about as long as the longest tree.

Shapes: R rows, T tokens in a row, N branches (sequences) over all rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORT_ROW = 256
"""Where attention costs the square of a row, trees shorter than this share one: below it, that is little beside the products."""


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
    """Tokens `start` to `stop` of a row that follow one another: a trunk, or a branch, which also sees its trunk."""

    start: int
    stop: int
    sees: tuple[slice, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows ready for a forward pass. Branches are numbered in the order of the trees given to `pack`."""

    ids_RT: Tensor
    positions_RT: Tensor
    tree_RT: Tensor
    """Number of the tree a token belongs to; -1 is padding."""
    branch_RT: Tensor
    """Number of the branch over the whole batch; -1 is the trunk (or padding)."""
    trees: tuple[int, ...]
    """Which of the trees given to `pack` are here, by their index, in the order of `branch_RT`."""
    useful_tokens: int
    spans: tuple[tuple[Span, ...], ...] = ()
    """Trunks and branches of each row, from left to right: what the mask says, by where it changes."""

    def mask_R1TT(self) -> Tensor:
        """The attention mask, True where a token may look: [R, 1, T query, T key]."""
        same_tree = self.tree_RT[:, :, None] == self.tree_RT[:, None, :]
        key_in_trunk = (self.branch_RT == -1)[:, None, :]
        same_branch = self.branch_RT[:, :, None] == self.branch_RT[:, None, :]
        length = self.ids_RT.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids_RT.device).tril()
        return (same_tree & (key_in_trunk | same_branch) & causal)[:, None]

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

    A tree is never cut: one that is longer than the budget is a batch of its own. Longest first, each tree goes to the first
    row with room; a new row has room for its first tree, or for `short_row` tokens (by default the whole budget, and `SHORT_ROW`
    where there is a GPU). Rows are then batched in order of length.
    Branches of a batch are numbered from 0, in the order of `PackedBatch.trees`.
    """
    if short_row is None:
        short_row = SHORT_ROW if torch.cuda.is_available() else budget
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].tokens, i)):
        size = trees[index].tokens
        place = next((row for row, room in enumerate(free) if size <= room), None)
        if place is None:
            rows.append([index])
            free.append(max(size, min(short_row, budget)) - size)
        else:
            rows[place].append(index)
            free[place] -= size
    lengths = [_rounded(sum(trees[index].tokens for index in members)) for members in rows]
    batch: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        if batch and longest * (len(batch) + 1) > _rounded(budget):
            yield _batch(trees, batch, pad_id)
            batch = []
        longest = longest if batch else lengths[number]
        batch.append(sorted(rows[number]))
    if batch:
        yield _batch(trees, batch, pad_id)


def _rounded(length: int) -> int:
    """Up to a multiple of 16, the grain of the matrix kernels, so that few shapes exist."""
    return length + -length % 16


def _batch(trees: Sequence[Tree], rows: Sequence[Sequence[int]], pad_id: int) -> PackedBatch:
    length = _rounded(max(sum(trees[index].tokens for index in members) for members in rows))
    cells: dict[str, list[list[int]]] = {"ids": [], "positions": [], "tree": [], "branch": []}
    next_tree = next_branch = 0
    spans: list[tuple[Span, ...]] = []
    for members in rows:
        own: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        tree_of: list[int] = []
        branch_of: list[int] = []
        for index in members:
            tree = trees[index]
            start = len(tree.trunk)
            trunk = slice(len(ids), len(ids) + start)
            own += [Span(trunk.start, trunk.stop)] if start else []
            ids += tree.trunk
            positions += range(start)
            branch_of += [-1] * start
            for branch in tree.branches:
                own.append(Span(len(ids), len(ids) + len(branch), (trunk,)))
                ids += branch
                positions += range(start, start + len(branch))
                branch_of += [next_branch] * len(branch)
                next_branch += 1
            tree_of += [next_tree] * tree.tokens
            next_tree += 1
        spans.append(tuple(own))
        padding = length - len(ids)
        cells["ids"].append(ids + [pad_id] * padding)
        cells["positions"].append(positions + [0] * padding)
        cells["tree"].append(tree_of + [-1] * padding)
        cells["branch"].append(branch_of + [-1] * padding)
    members_of_all = tuple(index for members in rows for index in members)
    return PackedBatch(
        ids_RT=torch.tensor(cells["ids"]),
        positions_RT=torch.tensor(cells["positions"]),
        tree_RT=torch.tensor(cells["tree"]),
        branch_RT=torch.tensor(cells["branch"]),
        trees=members_of_all,
        useful_tokens=sum(trees[index].useful_tokens for index in members_of_all),
        spans=tuple(spans),
    )
