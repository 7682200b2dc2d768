"""Forward passes of transformers models for scores, log-probabilities and values of packed rows.

Shapes: R rows, T tokens, D hidden units; N sequences, A attributes; M tokens of all answers, V vocabulary
entries.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.core.errors import ModelError
from rlhf.distributed.sharding import full_tensor, through_root
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.last_layer import read_states
from rlhf.kernels.logprobs import token_logprobs
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.models.bases import require_plain_logits
from rlhf.models.loading import PeftModel
from rlhf.models.names import HEAD, VALUE_HEAD


def last_states(model: PeftModel, batch: PackedBatch) -> Tensor:
    """hidden_ND: the last hidden states, with the active adapter, at the last token of each sequence."""
    read = functools.partial(read_states, model.get_base_model().base_model, batch.last_tokens_N)
    return through_root(model, read)(**packed_inputs(batch))


def enable_packed_scores(classifier: PreTrainedModel) -> None:
    """Add `model(..., score_at=(rows_N, columns_N)) -> scores_NA`, in float32, to a sequence classifier.

    transformers' forward reads one score per row, at its last token; a packed row has several. The call goes
    through the model's forward, as wrappers of distributed training need it.
    """
    original = classifier.forward

    def forward(self: Any, *args: Any, score_at: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> Any:
        if score_at is None:
            return original(*args, **kwargs)
        return apply_head(getattr(self, HEAD), read_states(self.base_model, score_at, *args, **kwargs))

    classifier.forward = types.MethodType(forward, classifier)


def enable_packed_logprobs(model: PreTrainedModel, temperature: float) -> None:
    """Add `model(..., predict=(rows_M, columns_M, ids_M), entropy=True) -> (logps_M, entropy_M)`.

    The log-probability of id m is computed at row m and column m; the head is applied to these tokens only.

    Raises:
        ModelError: the model changes its logits further, see `require_plain_logits`.
    """
    require_plain_logits(model)
    original = model.forward

    # `generate` computes only the last logits if `logits_to_keep` is in the signature.
    @functools.wraps(getattr(original, "__func__", original))
    def forward(
        self: Any,
        *args: Any,
        predict: tuple[Tensor, Tensor, Tensor] | None = None,
        entropy: bool = True,
        **kwargs: Any,
    ) -> Any:
        if predict is None:
            return original(*args, **kwargs)
        rows_M, columns_M, ids_M = predict
        hidden_MD = read_states(self.base_model, (rows_M, columns_M), *args, **kwargs)
        weight_VD = self.get_output_embeddings().weight
        sharded = hasattr(weight_VD, "full_tensor")
        if sharded and weight_VD.requires_grad:  # gathered here, it would lose its gradient
            raise ModelError(
                f"FSDP2 does not gather the head of {self.config.model_type} with its last norm, so it "
                "cannot be trained.",
                fix="train an adapter, or use GPUs that hold all weights (configs/launch/ddp.yaml)",
            )
        # Offloaded shards are gathered in host memory.
        weight_VD = full_tensor(weight_VD).to(hidden_MD.device)
        return token_logprobs(hidden_MD, weight_VD, ids_M, temperature, entropy=entropy)

    model.forward = types.MethodType(forward, model)


def enable_packed_values(model: PreTrainedModel, head: nn.Linear) -> None:
    """Add a value head and `model(..., value_at=(rows_M, columns_M)) -> values_M`, in float32."""
    model.add_module(VALUE_HEAD, head)
    original = model.forward

    @functools.wraps(getattr(original, "__func__", original))
    def forward(self: Any, *args: Any, value_at: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> Any:
        if value_at is None:
            return original(*args, **kwargs)
        hidden_MD = read_states(self.base_model, value_at, *args, **kwargs)
        return apply_head(getattr(self, VALUE_HEAD), hidden_MD).squeeze(1)

    model.forward = types.MethodType(forward, model)


def apply_head(head: nn.Module, hidden_ND: Tensor) -> Tensor:
    """scores_NA = head(hidden_ND) in float32, autocast or not: bfloat16 would tie close responses."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return head(hidden_ND.float())  # type: ignore[no-any-return]
