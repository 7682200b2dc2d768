"""Memory and speed of rollouts by vLLM, as vLLM computes them: weights, key-value cache, answers at once.

    cache bytes of a token  = 2 x layers x key-value heads x head size x bytes a value
    cache                   = share of the GPU - weights - working memory
    at once                 = min(max_num_seqs, cache / (bytes of a token x tokens of a sequence))

Source: vLLM 0.31 `v1/kv_cache_interface.py` (`FullAttentionSpec.page_size_bytes`), `v1/worker/gpu_worker.py`
(`determine_available_memory`). Working memory is profiled by vLLM when it starts; here it is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SERVER_TOKENS, LARGE_SERVER_TOKENS, LARGE = 2048, 8192, 70 * 2**30
"""Tokens of a server's step at most, on GPUs below and from `LARGE` bytes (vLLM's
`EngineArgs.get_batch_defaults`)."""
GRAPHS = 2**30
"""Captured CUDA graphs of an engine. An estimate: vLLM profiles them when it starts
(`v1/worker/gpu_model_runner.py`, `profile_cudagraph_memory`) and counts them in its share; users report 0.5
to 1.5 GiB in its log."""
PAGED_BLOCK = 32
"""Tokens of a block of transformers' paged cache, see policy/rollouts/paged_engine.py."""
PAGED_SHARE = 0.8
"""Share of the free memory that the paged cache and its working memory take together: `MEMORY_SHARE` of
policy/rollouts/paged_engine.py, which passes it to transformers as `max_memory_percent`."""
BLOCK = 16
"""Tokens of a block of vLLM's cache."""
CACHED_SHARE = 0.6
"""Share of the memory's bandwidth that decoding reaches. An estimate without a measurement."""


@dataclass(frozen=True)
class EngineMemory:
    """Memory of the engine on one GPU, in bytes."""

    weights: int
    """The engine's own; 0 where it samples with the trainer's."""
    working: int
    """Activations of the largest step, logits of the sampler, captured graphs."""
    cache: int
    at_once: int
    """Sequences of full length in the cache at once; with 0 the engine does not start."""
    token_bytes: int


def weight_bytes(shape: Any, dtype_bytes: int, quantization: str) -> int:
    """Bytes of the engine's copy of the base.

    In 4 bits: a float32 scale for 64 weights; embedding and head in 16 bits. Source: vLLM's
    `bitsandbytes_loader.py`, which does not nest the scales of a checkpoint that it quantizes.
    """
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    head_size = getattr(shape, "head_dim", None) or hidden // heads
    attention = 2 * hidden * head_size * (heads + shape.num_key_value_heads)
    layer = attention + 3 * hidden * shape.intermediate_size
    outer = shape.vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
    per_weight = 0.5 + 4 / 64 if quantization == "nf4" else dtype_bytes
    return int(shape.num_hidden_layers * layer * per_weight + outer * dtype_bytes)


def token_bytes(shape: Any, dtype_bytes: int) -> int:
    """Bytes of the key-value cache of one token, all layers."""
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * shape.num_key_value_heads * head_size * dtype_bytes)


def working_bytes(
    shape: Any, dtype_bytes: int, sequences: int, max_model_len: int, batched_tokens: int
) -> int:
    """Estimate of what vLLM profiles: the largest activations of a step, and the sampler's logits.

        tokens x (4 hidden + 3 intermediate) x bytes + 3 x sequences x words x 4

    An estimate: vLLM logs its figure as "peak activation memory". Not yet compared on a GPU.
    """
    tokens = min(batched_tokens, max(sequences * max_model_len, 1))
    wide = tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size) * dtype_bytes
    return int(wide + 3 * min(sequences, 1024) * shape.vocab_size * 4)


def engine_memory(
    shape: Any,
    *,
    budget: int,
    parallel: int,
    dtype_bytes: int,
    quantization: str,
    sequences: int,
    max_model_len: int,
    batched_tokens: int,
    adapter: int = 0,
) -> EngineMemory:
    """Memory of one GPU of an engine on `parallel` GPUs that may take `budget` bytes of each.

    Args:
        batched_tokens: tokens of one step at most.
        adapter: bytes of the policy's adapter in the engine; replicated on each GPU.
    """
    weights = weight_bytes(shape, dtype_bytes, quantization) // parallel + adapter
    working = working_bytes(shape, dtype_bytes, sequences, max_model_len, batched_tokens) // parallel + GRAPHS
    per_token = max(1, token_bytes(shape, dtype_bytes) // min(parallel, shape.num_key_value_heads))
    whole = -(-max_model_len // BLOCK) * BLOCK * per_token
    cache = max(0, budget - weights - working)
    return EngineMemory(weights, working, cache, min(sequences, cache // whole), per_token)


def paged_memory(
    shape: Any, *, free: int, dtype_bytes: int, sequences: int, max_model_len: int, batched_tokens: int
) -> EngineMemory:
    """Memory of transformers' paged cache on one GPU with `free` bytes beside the trained model.

        working = tokens x (hidden x bytes + words x 4)       cache = 0.8 x free - working

    Source: transformers 5.17 `generation/continuous_batching/cache.py` (`PagedAttentionMemoryHandler`).
    """
    working = batched_tokens * (shape.hidden_size * dtype_bytes + shape.vocab_size * 4)
    per_token = token_bytes(shape, dtype_bytes)
    whole = -(-max_model_len // PAGED_BLOCK) * PAGED_BLOCK * per_token
    cache = max(0, int(PAGED_SHARE * free) - working)
    return EngineMemory(0, working, cache, min(sequences, cache // whole), per_token)


def decode_seconds(
    *,
    weights: int,
    token_bytes: int,
    sequences: int,
    context: float,
    bandwidth: float,
    flops: float,
    parameters: float,
) -> float:
    """Seconds of one decoding step of `sequences` tokens: the larger of memory traffic and matrix products.

    Args:
        weights: bytes of a GPU's share of the base and its adapter.
        token_bytes: bytes of the cache of one token on a GPU.
        context: mean tokens in the cache of a sequence.
        bandwidth: bytes a second of one GPU.
        flops: operations a second of the engine's GPUs, utilisation included.
        parameters: of the base.
    """
    read = weights + sequences * context * token_bytes
    return max(read / (bandwidth * CACHED_SHARE), 2 * parameters * sequences / flops)
