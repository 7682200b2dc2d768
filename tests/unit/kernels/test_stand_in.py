"""A base in host memory that GPUs will share is measured by a small random model of its kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from rlhf.kernels import packing_check
from rlhf.kernels.packing_check import decide_packing, one_per_row
from rlhf.kernels.stand_in import keep_first_layers, small_copy


def config(**more: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 128}
    return LlamaConfig(**sizes, num_hidden_layers=6, **more)


def model() -> PreTrainedModel:
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config(), attn_implementation="sdpa")
    return made


def test_the_copy_is_of_the_same_class_format_and_attention_and_leaves_the_random_state() -> None:
    base = model().to(torch.bfloat16)
    state = torch.get_rng_state()
    small = small_copy(base, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    assert type(small) is type(base) and small.dtype == torch.bfloat16 and small.config.num_hidden_layers == 2
    assert small.config._attn_implementation == base.config._attn_implementation == "sdpa"
    assert base.config.num_hidden_layers == 6


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        (["full_attention"] * 6, 2),
        (["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2, 4),
    ],
)
def test_the_layers_of_all_kinds_are_kept(kinds: list[str], kept: int) -> None:
    settings = SimpleNamespace(num_hidden_layers=6, layer_types=kinds, other=[1, 2])
    keep_first_layers(settings)
    assert (settings.num_hidden_layers, settings.layer_types) == (kept, kinds[:kept])
    assert settings.other == [1, 2]


def test_a_base_in_host_memory_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fused kernels are for a GPU, and so may be the scales of its 4-bit weights."""
    base = model()

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")

    for module in base.modules():
        module.forward = fails  # type: ignore[method-assign]
    monkeypatch.setattr(packing_check, "compute_device", lambda model: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(
        packing_check, "small_copy", lambda model, device: small_copy(model, torch.device("cpu"))
    )
    decide_packing(base, logits=True)
    assert not one_per_row(base)


def test_generate_computes_the_last_logits_only(tiny_base: Path) -> None:
    """transformers finds `logits_to_keep` in the signature of `forward`, or computes those of all tokens."""
    from rlhf.models.forwards import enable_packed_logprobs
    from rlhf.models.loading import load_causal

    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    enable_packed_logprobs(base, 1.0)
    assert base._supports_logits_to_keep()
    lengths: list[int] = []
    base.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )
    ids = torch.arange(10)[None] + 20
    base.generate(input_ids=ids, max_new_tokens=2, do_sample=False, eos_token_id=-1)
    assert lengths == [1, 1]
