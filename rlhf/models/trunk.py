"""The causal base of an adapter, loaded as a config or as the card of a trained adapter says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.distributed.sharding import is_requested
from rlhf.kernels.fused import Wanted, choose_layers
from rlhf.models.loading import load_causal
from rlhf.runs.gpu_memory import phase


def load_configured(model: ModelConfig) -> PreTrainedModel:
    """The causal base that a config names, on the CPU."""
    return load_causal(
        model.base,
        revision=model.revision,
        dtype=model.dtype,
        quantization=model.quantization,
        fast_layers=model.fast_layers,
    )


@phase("loading")
def load_trunk_of(card: Mapping[str, Any], *, writes: bool = True) -> PreTrainedModel:
    """The causal base that an adapter was trained on, on the GPU if there is one, with its layers chosen.

    Args:
        card: of the adapter.
        writes: the output embedding is needed.
    """
    trunk = load_causal(
        card["base"],
        revision=card["revision"],
        dtype=card["dtype"],
        quantization=card["quantization"],
        fast_layers=card.get("fast_layers", True),
        writes=writes,
    )
    return placed(trunk, card["quantization"], "auto")


@phase("loading")
def load_trunk(model: ModelConfig) -> PreTrainedModel:
    """The causal base of an adapter without a head, on the GPU if there is one, with its layers chosen."""
    return placed(load_configured(model), model.quantization, model.fused_kernels)


def placed(trunk: PreTrainedModel, quantization: str, layers: Wanted) -> PreTrainedModel:
    """A base on the GPU, unless it is there already (in 4 bits) or will be sharded, with its layers
    chosen."""
    if torch.cuda.is_available() and quantization == "none" and not is_requested():
        trunk = trunk.to("cuda")
    choose_layers(trunk, layers)
    return trunk
