"""Rollouts by vLLM, in vLLM's own arithmetic: weights, key-value cache, how many answers at once, how fast.

    cache bytes of a token  = 2 x layers x key-value heads x head size x bytes a value
    cache                   = share of the card - weights - working memory
    at once                 = min(max_num_seqs, cache / (bytes of a token x tokens of a sequence))

Source: vLLM 0.31 `v1/kv_cache_interface.py` (`FullAttentionSpec.page_size_bytes`), `v1/worker/gpu_worker.py`
(`determine_available_memory`). Working memory is profiled by vLLM at its start; here it is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SERVER_TOKENS, LARGE_SERVER_TOKENS, LARGE = 2048, 8192, 70 * 2**30
"""Tokens of one step of a server at most, and on GPUs of `LARGE` bytes and more (vLLM's defaults, `EngineArgs.get_batch_defaults`)."""
GRAPHS = 2**30
"""Captured CUDA graphs of an engine. An assumption: vLLM's log has the figure ("Graph capturing finished"), 0.5 to 1.5 GiB by report."""
PAGED_BLOCK = 32
"""Tokens of a block of the cache on the trained model itself, see policy/rollouts/paged_engine.py."""
PAGED_SHARE = 0.8
"""Share of the free memory that cache and working memory take there together."""
BLOCK = 16
"""Tokens of a block of the cache."""
CACHED_SHARE = 0.6
"""Share of the memory's bandwidth that decoding reaches. An assumption."""


@dataclass(frozen=True)
class EngineMemory:
    """What one card holds for the engine."""

    weights: int
    working: int
    """Activations of the largest step, logits of the sampler, captured graphs."""
    cache: int
    at_once: int
    """Sequences of full length under way together; 0: the engine refuses to start."""
    token_bytes: int


def weight_bytes(shape: Any, dtype_bytes: int, quantization: str) -> int:
    """The engine's copy of the base. In 4 bits: scales in float32, one for 64 weights, embedding and head in 16 bits.

    Source: vLLM's `bitsandbytes_loader.py`; it keeps no nested scales of an unquantized checkpoint.
    """
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    head_size = getattr(shape, "head_dim", None) or hidden // heads
    attention = 2 * hidden * head_size * (heads + shape.num_key_value_heads)
    layer = attention + 3 * hidden * shape.intermediate_size
    outer = shape.vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
    per_weight = 0.5 + 4 / 64 if quantization == "nf4" else dtype_bytes
    return int(shape.num_hidden_layers * layer * per_weight + outer * dtype_bytes)


def token_bytes(shape: Any, dtype_bytes: int) -> int:
    """Cache of one token, all layers."""
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * shape.num_key_value_heads * head_size * dtype_bytes)


def working_bytes(
    shape: Any, dtype_bytes: int, sequences: int, max_model_len: int, batched_tokens: int
) -> int:
    """An estimate of what vLLM's profiling finds: a step's widest activations, and the sampler's logits.

        tokens x (4 hidden + 3 intermediate) x bytes + 3 x sequences x words x 4

    vLLM's own figure is in its log ("peak activation memory"); here nothing of it was seen on a GPU.
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
    """One card of an engine that is spread over `parallel` cards and may take `budget` bytes of each.

    Args:
        batched_tokens: tokens of one step at most.
        adapter: bytes of the policy's adapter as the engine keeps it; whole on each card.
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
    """One GPU whose free bytes a paged cache on the trained model itself shares with the working memory of a step.

        working = tokens x (hidden x bytes + words x 4)       cache = 0.8 x free - working

    Source: transformers 5.17 `generation/continuous_batching/cache.py` (`PagedAttentionMemoryHandler`).
    """
    working = batched_tokens * (shape.hidden_size * dtype_bytes + shape.vocab_size * 4)
    per_token = token_bytes(shape, dtype_bytes)
    whole = -(-max_model_len // PAGED_BLOCK) * PAGED_BLOCK * per_token
    cache = max(0, int(PAGED_SHARE * free) - working)
    return EngineMemory(0, working, cache, min(sequences, cache // whole), per_token)


def decode_seconds(
    memory: EngineMemory, *, sequences: int, context: float, bandwidth: float, flops: float, parameters: float
) -> float:
    """Seconds of one step of `sequences` tokens: weights and cache are read once, or the products take longer.

    Args:
        context: mean tokens in the cache of a sequence.
        bandwidth: bytes a second of one card.
        flops: operations a second of the engine's cards, utilisation included.
        parameters: of the base.
    """
    read = memory.weights + sequences * context * memory.token_bytes
    return max(read / (bandwidth * CACHED_SHARE), 2 * parameters * sequences / flops)
