"""Bases in 4 bits (NF4 by bitsandbytes), whether they are stored so or quantized when they are loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4_settings(dtype: torch.dtype, skipped: list[str]) -> BitsAndBytesConfig:
    """How a base is quantized: nf4 with double quantization, computed in `dtype`, without the `skipped` modules."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=dtype,  # the same bits in a format that FSDP2 can shard
        llm_int8_skip_modules=skipped,
    )


def prepare(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the 4-bit layers of a model, if it has any, compute in `dtype` and keep their gradients.

    On CPUs with AVX512-BF16 bitsandbytes repacks weights in place at the first forward pass out of training mode, for a kernel that
    has no backward pass: from then on the gradient would end at every layer, silently, and the logits would be others than in training.
    """
    for layer in model.modules():
        if is_4_bit(layer):
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = dtype


def is_4_bit(layer: nn.Module) -> bool:
    """Whether a layer's weights are in 4 bits, without an import of bitsandbytes."""
    return type(layer).__name__ == "Linear4bit"
