from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reward.training.batches import Item
from reward.training.head_start import PENALTIES, fit_head, ridge
from rlhf.kernels.packing import Tree
from rlhf.models.loading import load_classifier, lora_config, reward_head, with_adapter


def primal(X: Tensor, y: Tensor, penalty: float) -> Tensor:
    """(X'X + lambda I)^-1 X'y."""
    return torch.linalg.solve(X.T @ X + penalty * torch.eye(X.shape[1], dtype=X.dtype), X.T @ y)


@pytest.mark.parametrize(("equations", "units", "noise"), [(12, 5, 0.1), (6, 20, 0.5), (12, 5, 20.0)])
def test_ridge_is_the_closed_form_at_the_best_left_out_error(
    equations: int, units: int, noise: float
) -> None:
    torch.manual_seed(0)
    X = torch.randn(equations, units, dtype=torch.double)
    y = X @ torch.randn(units, dtype=torch.double) + noise * torch.randn(equations, dtype=torch.double)
    scale = float(X.square().sum(dim=1).mean())

    def left_out(penalty: float) -> float:
        errors = []
        for k in range(equations):
            rest = torch.arange(equations) != k
            errors.append(float(X[k] @ primal(X[rest], y[rest], penalty) - y[k]) ** 2)
        return sum(errors)

    best = min((candidate * scale for candidate in PENALTIES), key=left_out)
    assert torch.allclose(ridge(X, y).double(), primal(X, y, best), atol=1e-5)


def test_noise_takes_a_larger_penalty_than_a_clean_target() -> None:
    torch.manual_seed(0)
    X = torch.randn(40, 10)
    w = torch.randn(10)
    assert torch.allclose(ridge(X, X @ w), w, rtol=0.05, atol=0.05)
    assert (
        ridge(X, 5 * torch.randn(40)).norm()
        < 0.5 * torch.linalg.lstsq(X, 5 * torch.randn(40)).solution.norm()
    )


@pytest.fixture
def model(tiny_base: Path) -> Any:
    torch.manual_seed(0)
    classifier = load_classifier(
        str(tiny_base),
        attributes=["a", "b", "c"],
        revision=None,
        dtype="float32",
        quantization="none",
        pad_id=0,
    )
    return with_adapter(
        classifier, lora_config(rank=2, alpha=4, dropout=0.0, targets="all-linear", head=True)
    )


def features(model: Any, sequences: list[tuple[int, ...]]) -> Tensor:
    body = model.get_base_model().model
    with torch.no_grad():
        return torch.stack([body(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences])


def test_the_head_predicts_a_planted_target(model: Any) -> None:
    """Ratings of `a` and `b` are linear in the hidden units, `c` is unrated; tested on other responses."""
    draw = random.Random(0)
    sequences = [tuple(draw.choices(range(100, 40_000), k=6)) for _ in range(260)]
    hidden = features(model, sequences)
    torch.manual_seed(1)
    planted = torch.randn(2, hidden.shape[1]) / hidden.shape[1] ** 0.5
    targets = hidden @ planted.T
    items = [
        Item(Tree(ids[:-1], (ids[-1:],)), ((*row, None),))
        for ids, row in zip(sequences[:200], targets[:200].tolist(), strict=True)
    ]
    progress: list[int] = []
    head = reward_head(model)
    fit_head(model, head, items, budget=256, pad_id=0, done=progress.append)
    assert progress[-1] == 200 and progress == sorted(progress)
    predicted = hidden[200:] @ head.weight.detach().T
    for attribute in (0, 1):
        correlation = torch.corrcoef(torch.stack([predicted[:, attribute], targets[200:, attribute]]))[0, 1]
        assert correlation > 0.9  # by chance 0, give or take 0.13
    assert head.weight[2].tolist() == [0.0] * hidden.shape[1]


def test_the_reward_row_follows_the_pairs(model: Any) -> None:
    draw = random.Random(0)
    sequences = [tuple(draw.choices(range(100, 40_000), k=6)) for _ in range(480)]
    hidden = features(model, sequences)
    torch.manual_seed(1)
    reward = hidden @ torch.randn(hidden.shape[1])
    items = []
    for first, second in zip(range(0, 400, 2), range(1, 400, 2), strict=True):
        strength = 2 if reward[second] > reward[first] else -2
        tree = Tree((), (sequences[first], sequences[second]))
        items.append(Item(tree, ((None,) * 3, (None,) * 3), strength))
    head = reward_head(model)
    fit_head(model, head, items, budget=256, pad_id=0, done=[].append)
    predicted = hidden @ head.weight[0].detach()
    right = [
        bool((predicted[a] > predicted[b]) == (reward[a] > reward[b]))
        for a, b in zip(range(400, 480, 2), range(401, 480, 2), strict=True)
    ]
    assert sum(right) / len(right) > 0.8  # by chance 0.5, give or take 0.08
    assert head.weight[1:].abs().max() == 0


def test_the_head_is_trained_further(model: Any) -> None:
    head = reward_head(model)
    fit_head(
        model, head, [Item(Tree((5,), ((6,),)), ((3.0, None, None),))], budget=64, pad_id=0, done=[].append
    )
    assert head.weight.requires_grad and head.weight.dtype == torch.float32
