"""Tiny random causal models of transformers' families as Hugging Face folders, with one byte-level tokenizer.

`FAMILIES` lists them. A name is the family's `model_type`, perhaps with a relevant setting
(`qwen2_window`, `falcon_alibi`, `llama_yarn`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 260
CONTEXT = 256
CHATML = (
    "{% for m in messages %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_GPT2 = {"n_positions": CONTEXT}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_NO_HEAD_DIM = ("mamba", "gpt_neox", "bloom", "mpt", "gpt2", "gptj", "opt", "falcon", "phi", "stablelm")
"""Families whose configs have no `head_dim`, or derive it."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_dropout": ("llama", {"attention_dropout": 0.2}),
    "llama_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 10000.0,
            }
        },
    ),
    "llama_dynamic": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "decoder_sparse_step": 1}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_EXPERTS,
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 16}),
    "gemma2_nocap": ("gemma2", {"sliding_window": 16, "final_logit_softcapping": None}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 16, "layer_types": _ALTERNATING}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": 16}),
    "phi3_longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 32,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 16}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
    "granite": (
        "granite",
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
        },
    ),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 16}),
    "glm4": ("glm4", {}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    ),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": _ALTERNATING,
        },
    ),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "falcon": ("falcon", {"alibi": False}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"max_seq_len": CONTEXT}),
    "mamba": ("mamba", {"state_size": 8}),
    "phimoe": ("phimoe", {"num_local_experts": 4, "sliding_window": 16}),
    "bamba": (
        "bamba",
        {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1, 3]},
    ),
    "recurrent_gemma": ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 16}),
    "llama4_text": ("llama4_text", {"num_local_experts": 4, "intermediate_size_mlp": 64}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
    ),
}


def build(name: str, folder: Path, *, scale: float = 0.2, **overrides: Any) -> Path:
    """Save a random model of a family, with tokenizer and generation config; returns the folder.

    Args:
        name: a key of `FAMILIES`.
        scale: standard deviation of every matrix.
        overrides: further settings of the model's config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = FAMILIES[name]
    common = {key: value for key, value in _COMMON.items() if key != "head_dim" or kind not in _NO_HEAD_DIM}
    config = AutoConfig.for_model(kind, **{**common, **settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(0, scale)
    model.eval().save_pretrained(folder)
    write_tokenizer(folder)
    ends = [2, 0, *range(10, 40)]  # many, so that answers of a random model end
    generation = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def build_to_chat(name: str, folder: Path, tokenizer_of: Path, **overrides: Any) -> Path:
    """Like `build`, with two layers and the tokenizer and template of another model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "num_hidden_layers": 2}
    build(name, folder, **{**settings, "layer_types": None, **ids, **overrides})
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Save a tokenizer of single bytes and four special tokens, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        bos_token="<|im_start|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
