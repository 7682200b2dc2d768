"""For every model family, rows of `pack` give the hidden states of each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import FAMILIES, build
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.core.errors import ModelError
from rlhf.kernels import attention, layers, packing_check
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.last_layer import every_state
from rlhf.kernels.packing import Tree, pack
from rlhf.kernels.packing_check import (
    DECISION,
    decide_packing,
    largest_difference,
    one_per_row,
    reason_by_kind,
)
from rlhf.kernels.stand_in import small_copy
from rlhf.models.dropout import switch_off

ALONE = {
    "bamba",  # recurrence
    "bloom",  # ALiBi, from the 2-D mask
    "falcon",  # its own attention code
    "falcon_alibi",
    "gpt_neo",
    "gptj",
    "lfm2",  # convolutions
    "llama_dynamic",  # RoPE by the length of the row
    "mamba",  # recurrence
    "mpt",
    "phi3_longrope",
    "qwen3_next",  # linear attention
    "recurrent_gemma",
}
"""Families that need one sequence per row; all others are packed."""
CHANGED_LOGITS = {"cohere", "cohere2", "gemma2", "granite", "phi", "recurrent_gemma"}
"""Families whose logits are not the products of hidden states and head."""
REFUSED = {"llama4_text", "phimoe"}
"""Families without access to their hidden states, or with noise of their own; refused before loading."""
DOCUMENT = Path(__file__).parents[2] / "docs/packing.md"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: build(name, tmp_path_factory.mktemp("families") / name)


def load(folder: Path, attention: str | None = "sdpa") -> PreTrainedModel:
    """Load like `rlhf.models.loading`; with eager attention if the model has no other."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
    except ValueError:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    switch_off(model)
    return model.eval().requires_grad_(False)


def forest() -> list[Tree]:
    """Trees longer and shorter than the windows of 16 tokens and the RoPE contexts of 32 and 64."""
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(40, 250) for _ in range(count))

    start = ids(3)
    return [
        Tree(start + ids(60), (ids(9), ids(14))),
        Tree(start + ids(20), (ids(6), ids(2))),
        Tree(start + ids(2), (ids(4), ids(3))),
    ]


def sequences(trees: Sequence[Tree]) -> list[tuple[int, ...]]:
    return [tree.trunk + branch for tree in trees for branch in tree.branches]


def table_row(name: str, model: PreTrainedModel) -> str:
    """A family's line in the document; a failing test shows the line that belongs there."""
    reason = reason_by_kind(model)
    return f"| {name} | {'packed' if reason is None else 'one sequence per row'} | {reason or ''} |"


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - REFUSED))
def test_rows_give_what_the_sequences_give_alone(name: str, built: Callable[[str], Path]) -> None:
    folder = built(name)
    model = load(folder)
    layers.enable(model)
    decide_packing(model)
    assert one_per_row(model) == (name in ALONE)
    small = small_copy(model, torch.device("cpu"))
    decide_packing(small)
    assert one_per_row(small) == (name in ALONE), "a base that waits to be sharded is measured by this one"
    assert table_row(name, model) in DOCUMENT.read_text(encoding="utf-8")
    trees = forest()
    (batch,) = pack(trees, 10_000, pad_id=3, one_per_row=one_per_row(model))
    hidden_RTD = every_state(model.base_model, **packed_inputs(batch))
    for branch, ids in enumerate(sequences(trees)):
        selected_RT = batch.branch_RT == branch
        plain = load(folder)  # a new model: dynamic RoPE caches earlier lengths
        alone_TD = plain.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        expected = alone_TD[batch.positions_RT[selected_RT]]
        assert (hidden_RTD[selected_RT] - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_attention_keeps_what_sdpa_would_leave_out(name: str, built: Callable[[str], Path]) -> None:
    """Soft-capped scores and sinks equal eager attention: packed, plain and in generation."""
    folder = built(name)
    settings = {"attn_logit_softcapping": 0.5} if name == "gemma2" else {}
    eager, ours = (
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **settings
        ).eval()
        for _ in range(2)
    )
    layers.enable(ours)
    assert ours.config._attn_implementation == attention.PACKED
    if name == "gpt_oss":
        with torch.no_grad():
            for model in (eager, ours):
                for layer in model.model.layers:
                    layer.self_attn.sinks.fill_(2.0)
    trees = forest()
    (batch,) = pack(trees, 10_000, pad_id=3)
    with torch.no_grad():
        packed_RTD = every_state(ours.model, **packed_inputs(batch))
        for branch, ids in enumerate(sequences(trees)):
            own_RT = batch.branch_RT == branch
            expected_TD = eager.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            plain_TD = ours.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            assert torch.allclose(plain_TD, expected_TD, atol=1e-4)
            assert torch.allclose(packed_RTD[own_RT], expected_TD[batch.positions_RT[own_RT]], atol=1e-4)
        prompt = torch.tensor([sequences(trees)[0]])
        answers = [
            model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False) for model in (ours, eager)
        ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "falcon"])
def test_attention_of_transformers_itself(name: str, built: Callable[[str], Path]) -> None:
    """With `fast_layers: false` models are packed unless they have sliding windows."""
    model = load(built(name))
    assert one_per_row(model) == (name != "qwen3")


@pytest.mark.parametrize("name", [*sorted(CHANGED_LOGITS), "llama", "gpt2", "qwen3_moe", "mamba"])
def test_changed_logits_are_measured(name: str, built: Callable[[str], Path]) -> None:
    """Were the settings of these families unknown, the measurement would find them."""
    model = load(built(name))
    if name in CHANGED_LOGITS:
        if name == "phi":
            torch.nn.init.ones_(model.lm_head.bias)
        with pytest.raises(ModelError) as caught:
            decide_packing(model, logits=True)
        assert "logits" in caught.value.found
    else:
        decide_packing(model, logits=True)


def test_noise_is_measured(built: Callable[[str], Path]) -> None:
    model = load(built("gpt2"))
    model.transformer.drop.p = 0.3
    with pytest.raises(ModelError) as caught:
        decide_packing(model)
    assert "in training" in caught.value.found
    assert not model.training


def test_a_window_in_the_mask_alone_is_measured(built: Callable[[str], Path]) -> None:
    """Phi-3.5-MoE's attention knows no window; the masks that transformers makes do."""
    model = AutoModelForCausalLM.from_pretrained(
        built("phimoe"), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    layers.enable(model)
    assert reason_by_kind(model) is None
    assert largest_difference(model, one_per_row=False) > 0.1
    assert largest_difference(model, one_per_row=True) < 1e-4
    assert model.config.sliding_window == 16


LEAKS = ("lfm2", "qwen3_next", "phi3_longrope")


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_of_an_unknown_kind_is_measured(
    name: str,
    built: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Were these kinds unknown, the measurement would find them."""
    monkeypatch.setattr(packing_check, "reason_by_kind", lambda model: None)
    packing_check._announce.cache_clear()
    model = load(built(name))
    layers.enable(model)
    decide_packing(model)
    assert one_per_row(model)
    assert f"{model.config.model_type}: one sequence per row" in capsys.readouterr().out


def test_the_check_is_quiet_and_leaves_the_model_as_it_was(
    built: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(built("llama")).to(torch.bfloat16)
    layers.enable(model)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decide_packing(model)
    assert not one_per_row(model)
    assert model.training
    assert capsys.readouterr().out == ""
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


def test_rounding_in_bfloat16_is_no_leak(built: Callable[[str], Path]) -> None:
    """The check computes in float32, so a bfloat16 base differs no more than a float32 base."""
    model = load(built("llama")).to(torch.bfloat16)
    layers.enable(model)
    assert largest_difference(model, one_per_row=False) < 1e-4
    decide_packing(model, wanted=False)
    assert one_per_row(model)


def test_a_model_that_looks_ahead_is_refused(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in which padding on the right changes earlier tokens is refused."""
    from rlhf.core.errors import ModelError

    model = load(built("llama"))
    layers.enable(model)
    embed = model.get_input_embeddings()
    plain = embed.forward

    def mean_added(ids: Tensor) -> Any:
        states = plain(ids)
        return states + states.mean(dim=1, keepdim=True)

    monkeypatch.setattr(embed, "forward", mean_added)
    with pytest.raises(ModelError) as caught:
        decide_packing(model)
    assert "llama" in str(caught.value)
    assert not hasattr(model, DECISION)
