"""The causal base of an adapter, loaded as a config says."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.kernels.fused import choose_layers
from rlhf.models.loading import load_causal


def load_trunk(model: ModelConfig) -> PreTrainedModel:
    """The causal base of an adapter without a head, on the GPU if there is one, with its layers chosen."""
    trunk = load_causal(
        model.base,
        revision=model.revision,
        dtype=model.dtype,
        quantization=model.quantization,
        fast_layers=model.fast_layers,
    )
    if torch.cuda.is_available() and model.quantization == "none":
        trunk = trunk.to("cuda")
    choose_layers(trunk, model.fused_kernels)
    return trunk
