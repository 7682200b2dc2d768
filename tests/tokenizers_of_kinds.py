"""Small byte-level tokenizers with chat templates, each in the shape of a public model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CLOSED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
STRIP = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)

KINDS: dict[str, dict[str, Any]] = {
    "chatml": {"special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "eos": "<|im_end|>",
               "pad": "<|endoftext|>", "template": CHATML},
    "llama3, no pad": {"special": ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
                                   "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                       "bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "template": LLAMA3},
    "mistral, no pad": {"special": ["<s>", "</s>", "<unk>"], "bos": "<s>", "eos": "</s>", "unk": "<unk>",
                        "template": MISTRAL},
    "gpt2, one special": {"special": ["<|endoftext|>"], "bos": "<|endoftext|>", "eos": "<|endoftext|>",
                          "template": PLAIN},
    "gpt2, pad is eos and closes": {"special": ["<|endoftext|>"], "eos": "<|endoftext|>",
                                    "pad": "<|endoftext|>", "template": CLOSED},
    "r1, turns not special": {"special": ["<|begin|>", "<|eos|>"], "added": ["<|User|>", "<|Assistant|>",
                                                                           "<think>", "</think>"],
                              "bos": "<|begin|>", "eos": "<|eos|>", "pad": "<|eos|>", "template": STRIP},
    "qwen, <unk> is a word": {"special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "eos": "<|im_end|>",
                              "pad": "<|im_end|>", "template": CHATML, "words": ["<unk>"]},
}  # fmt: skip


def make_tokenizer(
    *,
    special: list[str],
    template: str | dict[str, str],
    added: list[str] | None = None,
    words: list[str] | None = None,
    **named: str,
) -> Any:
    """A byte-level BPE without merges.

    Args:
        added: tokens that are matched in text as special ones are, without being special.
        words: entries of the vocabulary that no merge reaches.
        named: bos, eos, pad, unk.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_tokens(added or [])
    stored = json.loads(inner.to_str())
    for word in words or []:
        stored["model"]["vocab"][word] = len(stored["model"]["vocab"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
        clean_up_tokenization_spaces=False,
        **{f"{key}_token": value for key, value in named.items()},
    )
    tokenizer.chat_template = template
    return tokenizer


def write_base(folder: Path, tokenizer: Any, *, rows: int | None = None) -> Path:
    """A Llama of one layer with this tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
