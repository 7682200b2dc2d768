"""Weighted sums and truncations of low-rank updates, against the dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.adapters.lowrank import Factors, Update, combine, padded, rank_of, truncate

SHAPES = {"wide": (5, 40), "tall": (30, 6), "square": (12, 12)}


def update(rank: int, seed: int, layers: tuple[str, ...] = tuple(SHAPES)) -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(SHAPES[name][0], rank, generator=generator),
            torch.randn(rank, SHAPES[name][1], generator=generator),
        )
        for name in layers
    }


def dense(update: Update, layer: str) -> Tensor:
    if layer not in update:
        return torch.zeros(SHAPES[layer])
    B_OR, A_RI = update[layer]
    return B_OR @ A_RI


def test_a_weighted_sum_is_that_of_the_products() -> None:
    first, two = update(3, seed=0), update(2, seed=1, layers=("tall", "square"))
    both = combine([(1.52, first), (-0.52, two)])
    assert both.keys() == SHAPES.keys() and rank_of(both) == 5
    for layer in SHAPES:
        expected = 1.52 * dense(first, layer) - 0.52 * dense(two, layer)
        assert torch.allclose(dense(both, layer), expected, atol=1e-5), layer
    factors = {
        layer: Factors(first[layer].B_OR - two[layer].B_OR[:, :1], first[layer].A_RI) for layer in ("tall",)
    }
    assert not torch.allclose(dense(factors, "tall"), dense(first, "tall") - dense(two, "tall"), atol=0.1)


def test_a_part_of_weight_0_costs_no_rank() -> None:
    first, two = update(3, seed=0), update(2, seed=1)
    only = combine([(1.0, first), (0.0, two)])
    assert rank_of(only) == 3
    assert all(torch.equal(dense(only, layer), dense(first, layer)) for layer in SHAPES)


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_truncation_is_the_dense_one_and_so_is_its_error(rank: int) -> None:
    whole = update(7, seed=3)
    cut, error = truncate(whole, rank)
    missed, total = 0.0, 0.0
    for layer in SHAPES:
        # By hand: the singular value decomposition of the matrix itself, its first values kept.
        U, S, V = torch.linalg.svd(dense(whole, layer).double(), full_matrices=False)
        nearest = (U[:, :rank] * S[:rank]) @ V[:rank]
        assert torch.allclose(dense(cut, layer).double(), nearest, atol=1e-4), layer
        missed += float((dense(whole, layer) - dense(cut, layer)).square().sum())
        total += float(dense(whole, layer).square().sum())
        assert cut[layer].A_RI.shape[0] <= rank
    assert error == pytest.approx((missed / total) ** 0.5, abs=1e-5)
    assert error > 0.01 or rank == 5


def test_a_rank_that_suffices_cuts_nothing() -> None:
    """An update of rank 4 written in 8: two copies of itself, one of them backwards."""
    once = update(4, seed=5)
    twice = combine([(3.0, once), (-2.0, once)])
    cut, error = truncate(twice, 4)
    assert rank_of(twice) == 8 and rank_of(cut) == 4
    assert error == pytest.approx(0, abs=1e-6)
    assert all(torch.allclose(dense(cut, layer), dense(once, layer), atol=1e-4) for layer in SHAPES)


def test_nothing_has_no_error() -> None:
    zero = {"wide": Factors(torch.zeros(5, 2), torch.zeros(2, 40))}
    assert truncate(zero, 1)[1] == 0.0
    assert truncate({}, 1) == ({}, 0.0)
    assert rank_of({}) == 0


def test_padding_changes_no_product() -> None:
    narrow = update(2, seed=7)["tall"]
    wide = padded(narrow, 5)
    assert wide.B_OR.shape == (30, 5) and wide.A_RI.shape == (5, 6)
    assert torch.equal(wide.B_OR @ wide.A_RI, narrow.B_OR @ narrow.A_RI)
