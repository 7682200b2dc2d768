"""All weights to vLLM in this process, for a policy that is trained without an adapter: by TRL's own transfer.

TRL walks over the parameters, gathers what is sharded, and has vLLM load them one by one into the model it serves. vLLM's CPU backend lays
out weights for its kernels when it loads a model and throws the originals away, so that nothing can be loaded into them; here it keeps them
and multiplies by torch. The GPU backend is used as it is; it was not run by us.
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
    """TRL's transfer, to an engine that is there already.

    Args:
        model: whose weights are handed over by `sync_weights`, inherited.
        engine: vLLM's `LLM`.
    """

    def __init__(self, model: PreTrainedModel, engine: Any) -> None:
        self.llm = engine
        super().__init__(model, Accelerator(cpu=not torch.cuda.is_available()), processing_class=None)

    def _init_vllm(self) -> None:
        """TRL would make an engine here."""


@contextmanager
def kept_weights() -> Iterator[None]:
    """vLLM models that are loaded on a CPU within the block keep their weights, and multiply by torch."""
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm

    def keep(layer: Any, **_: bool) -> None:
        layer.cpu_linear = nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = stock
