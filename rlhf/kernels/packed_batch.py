"""The packed batch: rows of tokens with the positions, trees and branches of each, ready for a forward pass.

Shapes: R rows, T tokens in a row, N branches (sequences) over all rows, M tokens of branches with a
successor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.kernels.tensors import to_device

PADDING, SHARED = -1, -2
"""Values of `tree_RT` for padding and for the common prefix of all trees of a row."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of a row (prefix, trunk or branch), and the earlier ones they attend to."""

    start: int
    stop: int
    sees: tuple[slice, ...] = ()


@dataclass(frozen=True, slots=True)
class NextTokens:
    """The tokens followed by another token of the same branch, by row from left to right.

    To predict the first token of an answer, the trunk must end one token before the prompt does.
    """

    rows_M: Tensor
    columns_M: Tensor
    ids_M: Tensor
    """Id of the next token."""
    branch_M: Tensor

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """(rows, columns) as an index of a [R, T] tensor."""
        return self.rows_M, self.columns_M


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows ready for a forward pass. Branches are numbered in the order of `trees`.

    The packer computes all indices on the CPU, so none depends on data on a device.
    """

    ids_RT: Tensor
    positions_RT: Tensor
    tree_RT: Tensor
    """Number of a token's tree; `PADDING`, or `SHARED` for the common prefix of the row."""
    branch_RT: Tensor
    """Number of a token's branch in the batch; -1 for trunks, the common prefix and padding."""
    last_tokens_N: tuple[Tensor, Tensor]
    """Row and column of the last token of each branch."""
    next_tokens: NextTokens
    trees: tuple[int, ...]
    """Indices of the batch's trees among those passed to `pack`, in the order of `branch_RT`."""
    useful_tokens: int
    computed_tokens: int
    """Tokens without padding."""
    spans: tuple[tuple[Span, ...], ...] = ()
    """Common prefix, trunks and branches of each row, from left to right: the mask in compact form."""
    one_per_row: bool = False
    """Whether each row is one sequence, for plain causal attention."""
    cache: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Masks of this batch, built once for all passes over it."""

    def mask_R1TT(self) -> Tensor:
        """The attention mask, True where a query attends to a key: [R, 1, T query, T key]."""
        # In place: T x T of a long row is large.
        sees_RTT = self.branch_RT[:, :, None] == self.branch_RT[:, None, :]
        sees_RTT |= (self.branch_RT == -1)[:, None, :]
        sees_RTT &= self.tree_RT[:, :, None] == self.tree_RT[:, None, :]
        sees_RTT |= (self.tree_RT != PADDING)[:, :, None] & (self.tree_RT == SHARED)[:, None, :]
        return sees_RTT.tril_()[:, None]

    def without_next_tokens(self) -> PackedBatch:
        """The same batch for passes that read last tokens only: 32 bytes a token less."""
        none = torch.empty(0, dtype=torch.long, device=self.ids_RT.device)
        return dataclasses.replace(self, next_tokens=NextTokens(none, none, none, none))

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        rows_N, columns_N = self.last_tokens_N
        following = self.next_tokens
        return dataclasses.replace(
            self,
            ids_RT=to_device(self.ids_RT, device),
            positions_RT=to_device(self.positions_RT, device),
            tree_RT=to_device(self.tree_RT, device),
            branch_RT=to_device(self.branch_RT, device),
            last_tokens_N=(to_device(rows_N, device), to_device(columns_N, device)),
            next_tokens=NextTokens(
                to_device(following.rows_M, device),
                to_device(following.columns_M, device),
                to_device(following.ids_M, device),
                to_device(following.branch_M, device),
            ),
        )
