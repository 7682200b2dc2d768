"""Figures of an update out of the sums of its packed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlhf.kernels.tensors import read_numbers

RowFigures = Mapping[str, Tensor | float]
"""Figures of one packed row, to be summed over the update."""


def sum_rows(rows: Sequence[RowFigures]) -> dict[str, float]:
    """The sum of each figure over all rows; the device is read in one transfer."""
    numbers = iter(read_numbers([value for row in rows for value in row.values()]))
    sums: dict[str, float] = {}
    for row in rows:
        for name in row:
            sums[name] = sums.get(name, 0.0) + next(numbers)
    return sums


def common_figures(total: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """The figures of every loss.

    Args:
        total: the sums over all rows and processes.
        counts: `responses` of the update.
    """
    mean = total["rewards"] / counts["responses"]
    return {
        "loss/total": total["loss/total"],
        "reward/mean": mean,
        "reward/std": max(total["rewards_squared"] / counts["responses"] - mean**2, 0.0) ** 0.5,
        "tokens/useful": total["tokens/useful"],
        "tokens/computed": total["tokens/computed"],
    }


def update_figures(
    total: Mapping[str, float], counts: Mapping[str, float], *, with_centering: bool
) -> dict[str, float]:
    """Losses, and means over the responses and pairs of an update.

    Args:
        total: the sums over all rows and processes.
        counts: `ratings`, `pairs` and `responses` of the update; a count of 0 leaves its figures out.
        with_centering: whether the centering loss is part of the objective.
    """
    figures = common_figures(total, counts)
    if counts["ratings"]:
        figures["loss/regression"] = total["loss/regression"]
    if counts["pairs"]:
        figures["loss/bt"] = total["loss/bt"]
        if with_centering:
            figures["loss/centering"] = total["loss/centering"]
        figures["reward/margin"] = total["margins"] / counts["pairs"]
        figures["reward/accuracy"] = total["right"] / counts["pairs"]
    return figures
