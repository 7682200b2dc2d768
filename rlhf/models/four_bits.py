"""Bases in 4 bits (NF4 by bitsandbytes), stored or quantized at load time."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4_settings(dtype: torch.dtype, skipped: list[str]) -> BitsAndBytesConfig:
    """The quantization config.

    Nf4 with double quantization, computed in `dtype`, without the `skipped` modules.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=dtype,  # the same bits in a format that FSDP2 can shard
        llm_int8_skip_modules=skipped,
    )


def prepare(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make the 4-bit layers of a model, if any, compute in `dtype` and support gradients.

    On CPUs with AVX512-BF16 bitsandbytes repacks weights in place at the first forward pass in evaluation
    mode, for a kernel without a backward pass. Afterwards gradients would silently stop at every layer, and
    logits would differ from training.
    """
    for layer in model.modules():
        if is_4_bit(layer):
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = dtype


def is_4_bit(layer: nn.Module) -> bool:
    """Whether a layer has 4-bit weights, without importing bitsandbytes."""
    return type(layer).__name__ == "Linear4bit"
