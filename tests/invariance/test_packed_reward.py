"""Packing changes no number: packed or one at a time, a reward model computes and learns the same."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reward.training.batches import Item, make_items
from reward.training.build import build_model
from reward.training.trainer import HybridRewardTrainer, trainer_arguments
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message, Preference, Rating
from rlhf.data.drops import DropReport
from rlhf.kernels import attention
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packed_batch import SHARED, PackedBatch, Span
from rlhf.kernels.packing import pack
from rlhf.models.chat import Chat
from rlhf.models.forwards import apply_head
from rlhf.models.loading import reward_head

BUDGETS = (1, 64, 256, 4096)
ATTRIBUTES = ("helpfulness", "verbosity")
REGRESSION, PREFERENCE = 0.7, 1.3


@pytest.fixture(scope="module", params=["none", "nf4"])
def config(tiny_base: Path, request: pytest.FixtureRequest) -> RewardConfig:
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {
                "base": str(tiny_base),
                "dtype": "float32",
                "quantization": request.param,
                "max_length": 256,
            },
            "adapter": {"rank": 4, "alpha": 8},
            "attributes": list(ATTRIBUTES),
            "data": {
                "ratings": [{"path": "demo", "format": "helpsteer2"}],
                "preferences": [{"path": "demo", "format": "helpsteer2-preference"}],
            },
            "stages": [
                {
                    "name": "hybrid",
                    "regression_weight": REGRESSION,
                    "preference_weight": PREFERENCE,
                    "preference_loss": "scaled",
                    "batch_size": 14,
                }
            ],
        }
    )


@pytest.fixture(scope="module")
def items(tiny_chat: Chat) -> list[Item]:
    """Ten pairs, some of them rated, and four rated responses, of all lengths and in no order."""
    draw = random.Random(0)
    words = [
        "the",
        "a",
        "river",
        "runs",
        "blue",
        "and",
        "cold",
        "over",
        "seven",
        "stones",
        "because",
        "rain",
        "fell",
    ]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    def ratings(share: float) -> dict[str, float]:
        return {name: draw.uniform(0, 4) for name in ATTRIBUTES if draw.random() < share}

    preferences = [
        Preference(
            (Message("user", text(draw.randint(1, 20))),),
            text(draw.randint(1, 30)),
            text(draw.randint(1, 30)),
            draw.choice([-3, -2, -1, 1, 2, 3]),
            ratings(0.5),
            ratings(0.5),
        )
        for _ in range(10)
    ]
    rated = [Rating((Message("user", text(5)),), text(draw.randint(1, 30)), ratings(1.0)) for _ in range(4)]
    return make_items(
        preferences, rated, tiny_chat, attributes=ATTRIBUTES, max_length=256, report=DropReport()
    )


@pytest.fixture
def model(config: RewardConfig, tiny_chat: Chat) -> Any:
    made = build_model(config, tiny_chat)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return made.eval()


def sequences(items: list[Item]) -> list[list[tuple[int, ...]]]:
    return [[item.tree.trunk + branch for branch in item.tree.branches] for item in items]


def alone(model: Any, ids: tuple[int, ...]) -> Tensor:
    """Scores by transformers' own forward: one row, no packing, no mask of ours."""
    return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]  # type: ignore[no-any-return]


def packed_scores(model: Any, items: list[Item], budget: int) -> list[list[Tensor]]:
    result: list[list[Tensor]] = [[] for _ in items]
    for batch in pack([item.tree for item in items], budget, pad_id=0):
        scores = iter(model(**packed_inputs(batch), score_at=batch.last_tokens_N))
        for index in batch.trees:
            result[index] = [next(scores) for _ in items[index].tree.branches]
    return result


@pytest.mark.parametrize("budget", BUDGETS)
def test_hidden_states(model: Any, items: list[Item], budget: int) -> None:
    body = model.get_base_model().model
    with torch.no_grad():
        for batch in pack([item.tree for item in items], budget, pad_id=0):
            hidden = body(**packed_inputs(batch), use_cache=False).last_hidden_state
            branch = 0
            for number, index in enumerate(batch.trees):
                for ids in sequences(items)[index]:
                    values = torch.isin(batch.branch_RT, torch.tensor([-1, branch]))
                    ours = torch.isin(batch.tree_RT, torch.tensor([SHARED, number])) & values
                    expected = body(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
                    assert torch.allclose(hidden[ours], expected, atol=1e-4)
                    branch += 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_scores(model: Any, items: list[Item], budget: int) -> None:
    with torch.no_grad():
        for scores, group in zip(packed_scores(model, items, budget), sequences(items), strict=True):
            for score, ids in zip(scores, group, strict=True):
                assert torch.allclose(score, alone(model, ids), atol=1e-4)


def all_causal(self: PackedBatch) -> Tensor:
    length = self.ids_RT.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril().expand(len(self.ids_RT), 1, -1, -1)


def one_span(batch: PackedBatch) -> tuple[tuple[Span, ...], ...]:
    return ((Span(0, batch.ids_RT.shape[1]),),) * len(batch.ids_RT)


def siblings_too(self: PackedBatch) -> Tensor:
    """A token also sees the branches before its own."""
    same_tree = self.tree_RT[:, :, None] == self.tree_RT[:, None, :]
    return (same_tree & all_causal(self)[:, 0])[:, None]


def a_span_a_tree(batch: PackedBatch) -> tuple[tuple[Span, ...], ...]:
    rows = []
    for numbers in batch.tree_RT.tolist():
        starts = [place for place, number in enumerate(numbers) if place == 0 or number != numbers[place - 1]]
        edges = itertools.pairwise([*starts, len(numbers)])
        rows.append(tuple(Span(start, stop) for start, stop in edges if numbers[start] != -1))
    return tuple(rows)


@pytest.mark.parametrize("by_blocks", [True, False])
@pytest.mark.parametrize(("mask", "spans"), [(all_causal, one_span), (siblings_too, a_span_a_tree)])
def test_a_wrong_mask_moves_the_scores(
    model: Any,
    items: list[Item],
    mask: Callable[[PackedBatch], Tensor],
    spans: Callable[[PackedBatch], tuple[tuple[Span, ...], ...]],
    by_blocks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tests above can fail."""
    right = attention.blocks_of
    monkeypatch.setattr(PackedBatch, "mask_R1TT", mask)
    monkeypatch.setattr(
        attention,
        "blocks_of",
        lambda batch: right(dataclasses.replace(batch, spans=spans(batch))) if by_blocks else [],
    )
    with torch.no_grad():
        moved = [
            float((score - alone(model, ids)).abs().max())
            for scores, group in zip(packed_scores(model, items, 4096), sequences(items), strict=True)
            for score, ids in zip(scores[1:], group[1:], strict=True)  # the second of each pair has a sibling
        ]
    assert min(moved) > 0.01 and max(moved) > 0.5


def test_packing_adds_nothing_to_the_error_of_bfloat16(model: Any, items: list[Item]) -> None:
    """Beside transformers' own forward on a padded batch, both under autocast, measured against float32."""
    pairs = [item for item in items if item.strength]
    rows = [list(ids) for group in sequences(pairs) for ids in group]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    ends = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])

    def both() -> tuple[Tensor, Tensor]:
        hidden = model.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
        packed = [score for scores in packed_scores(model, pairs, 4096) for score in scores]
        return apply_head(reward_head(model), hidden[ends]), torch.stack(packed)

    def loss(scores_NA: Tensor) -> float:
        return float(-F.logsigmoid(scores_NA[::2, 0] - scores_NA[1::2, 0]).mean())

    with torch.no_grad():
        padded, packed = both()
        with torch.autocast("cpu", torch.bfloat16):
            rough_padded, rough_packed = both()
    assert loss(packed) == pytest.approx(loss(padded), abs=1e-5)
    assert 0 < (rough_packed - packed).norm() < 1.3 * (rough_padded - padded).norm()


def test_positions_matter(model: Any, items: list[Item]) -> None:
    """If they did not restart, a score would depend on its place in the row."""
    (batch,) = pack([item.tree for item in items], 4096, pad_id=0)
    inputs = packed_inputs(batch)
    inputs["position_ids"] = torch.arange(batch.ids_RT.shape[1])[None]
    with torch.no_grad():
        right = model(**packed_inputs(batch), score_at=batch.last_tokens_N)
        moved = (model(**inputs, score_at=batch.last_tokens_N) - right).abs().amax(dim=1)
    assert moved.max() > 0.1


def gradients(model: Any) -> dict[str, Tensor]:
    """Takes the gradients off the model."""
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.fixture
def trainer(
    config: RewardConfig, model: Any, items: list[Item], tiny_chat: Chat, tmp_path: Path
) -> HybridRewardTrainer:
    """The trainer of the first stage."""
    stage = config.stages[0]
    return HybridRewardTrainer(
        model,
        trainer_arguments(
            **stage.optimizer.model_dump(),
            batch_size=stage.batch_size,
            folder=str(tmp_path),
            steps=1,
            dtype="float32",
            seed=0,
            evaluate_every=1,
            save_every=1,
            has_validation=False,
            gradient_checkpointing=False,
        ),
        tiny_chat.tokenizer,
        stage=stage,
        items=items,
        order=list(range(len(items))),
        validation=[],
        tokens_per_batch=0,
        step_offset=0,
        record=lambda *_: None,
    )


@pytest.fixture
def update(
    trainer: HybridRewardTrainer, model: Any
) -> Callable[[list[Item], int], tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of one update."""

    def run(batch: list[Item], budget: int) -> tuple[float, dict[str, Tensor]]:
        trainer.tokens_per_batch = budget
        loss = trainer.training_step(model, {"items": batch})
        return float(loss), gradients(model)

    return run


def test_the_clock_stops_once_the_kernels_are_done(
    trainer: HybridRewardTrainer, model: Any, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the last backward pass is still in flight when Python returns from it."""
    waited: list[float] = []
    now = time.perf_counter
    monkeypatch.setattr("reward.training.trainer.finish_kernels", lambda: waited.append(20))
    monkeypatch.setattr(time, "perf_counter", lambda: now() + sum(waited))
    trainer.tokens_per_batch = 10_000
    trainer.training_step(model, {"items": items})
    assert trainer.figures["time/step"] > 20


def test_the_gradient_is_that_of_the_definition(
    model: Any, items: list[Item], update: Callable[..., tuple[float, dict[str, Tensor]]]
) -> None:
    """regression_weight x mean squared error + preference_weight x mean of -m log sigmoid(c - r)."""
    errors, terms = [], []
    for item, group in zip(items, sequences(items), strict=True):
        scores = [alone(model, ids) for ids in group]
        for score, row in zip(scores, item.ratings, strict=True):
            errors += [(score[a] - value) ** 2 for a, value in enumerate(row) if value is not None]
        if item.strength:
            difference = (scores[1][0] - scores[0][0]) * (1 if item.strength > 0 else -1)
            terms.append(-abs(item.strength) * F.logsigmoid(difference))
    loss = REGRESSION * torch.stack(errors).mean() + PREFERENCE * torch.stack(terms).mean()
    loss.backward()
    theirs = gradients(model)
    ours_loss, ours = update(items, 256)
    assert ours_loss == pytest.approx(loss.item(), rel=1e-5)
    assert_same(ours, theirs)
    assert len(ours) == 2 * 7 * 2 + 1


def test_the_gradient_depends_neither_on_the_budget_nor_on_the_order(
    items: list[Item], update: Callable[..., tuple[float, dict[str, Tensor]]]
) -> None:
    loss, expected = update(items, 4096)
    for budget in (64, 256):
        other_loss, result = update(items, budget)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert_same(result, expected)
    shuffled = random.Random(1).sample(items, len(items))
    other_loss, result = update(shuffled, 256)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert_same(result, expected)
