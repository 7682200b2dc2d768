"""Transfer of all weights to vLLM in this process by TRL, for a policy that is trained without an adapter.

TRL gathers sharded parameters and has vLLM load them one by one. vLLM's CPU backend repacks weights for its
kernels when it loads a model and frees the originals, so that nothing can be loaded later; `kept_weights`
keeps them and multiplies by torch. The GPU backend is unchanged, and not yet tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel
from trl.generation.vllm_generation import VLLMGeneration


class WeightTransfer(VLLMGeneration):
    """TRL's weight transfer to an existing engine.

    Args:
        model: the trained model; the inherited `sync_weights` sends its weights.
        engine: vLLM's `LLM`.
    """

    def __init__(self, model: PreTrainedModel, engine: Any) -> None:
        self.llm = engine
        super().__init__(model, Accelerator(cpu=not torch.cuda.is_available()), processing_class=None)

    def _init_vllm(self) -> None:
        """TRL would create an engine here."""


@contextmanager
def kept_weights() -> Iterator[None]:
    """Within the block, vLLM models that are loaded on a CPU keep their weights and multiply by torch."""
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm

    def keep(layer: Any, **_: bool) -> None:
        layer.cpu_linear = nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = stock
