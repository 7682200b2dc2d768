"""Bases with random weights in the shape of real ones, made where they are needed: nothing is downloaded."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHAPES: Mapping[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "smol": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
"""SmolLM2-135M's and Llama-3.1-8B's, by their public config.json; `tiny` is for trying the programs on a
CPU."""


def make_base(kind: str, folder: Path, tokenizer: str = "embedded") -> Path:
    """The folder of a base of this kind with bfloat16 weights, drawn from seed 0; made if it is not there.

    Args:
        tokenizer: a folder or name; `embedded` is SmolLM2's.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf.models.embedded import resolve_base

    words = AutoTokenizer.from_pretrained(resolve_base(tokenizer))
    config = LlamaConfig(
        **{"vocab_size": len(words)} | SHAPES[kind],
        max_position_embeddings=8192,
        initializer_range=0.02 if kind == "8b" else 0.05,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    words.save_pretrained(unfinished)
    unfinished.replace(folder)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder
