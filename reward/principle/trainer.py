"""The reward trainer with the loss of a principle model, Yes against No."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reward.losses import fulfilment
from reward.training.batches import RewardBatch
from reward.training.figures import RowFigures, common_figures
from reward.training.trainer import HybridRewardTrainer
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.tensors import to_device


class PrincipleTrainer(HybridRewardTrainer):
    """Trains the adapter of a causal model with packed scores and the head of `question.answer_head`.

    Items have one rating a branch: 1 if the principle is fulfilled, else 0.
    """

    def _row_loss(
        self, model: Any, batch: RewardBatch, counts: Mapping[str, float]
    ) -> tuple[Tensor, RowFigures]:
        device = self.args.device
        packed = batch.packed.to(device)
        scores_N = model(**packed_inputs(packed), score_at=packed.last_tokens_N)[:, 0]
        fulfilled_N = to_device(batch.ratings_NA[:, 0], device)
        loss = fulfilment(scores_N, fulfilled_N, counts["ratings"])
        figures: RowFigures = {
            "loss/total": loss.detach(),
            "rewards": scores_N.detach().sum(),
            "rewards_squared": scores_N.detach().square().sum(),
            "right": ((scores_N > 0) == (fulfilled_N > 0)).sum(),
            "tokens/useful": packed.useful_tokens,
            "tokens/computed": packed.computed_tokens,
        }
        return loss, figures

    def _figures(self, total: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
        return common_figures(total, counts) | {"reward/accuracy": total["right"] / counts["ratings"]}
