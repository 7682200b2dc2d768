"""The partial last layer gives the states and gradients of the full one, for the tokens that are read."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.kernels import last_layer
from rlhf.kernels.last_layer import read_states

KINDS = pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
ROWS, TOKENS, UNITS = 2, 9, 32


def model_of(kind: str) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=50,
        hidden_size=UNITS,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    last_layer.enable(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return wrapped.get_base_model()


@pytest.fixture
def ids_RT() -> Tensor:
    return torch.randint(1, 50, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))


def index_of_tokens(as_mask: bool) -> Any:
    rows_M, columns_M = torch.tensor([0, 1, 1]), torch.tensor([8, 2, 7])
    if not as_mask:
        return rows_M, columns_M
    mask_RT = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    mask_RT[rows_M, columns_M] = True
    return mask_RT


def gradients_of(model: Any, hidden_MD: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    hidden_MD.pow(3).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.grad.clone() for name, p in trained.items()}


@KINDS
def test_listed_layers_have_llamas_source(kind: str) -> None:
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    layer = next(getattr(module, name) for name in last_layer.LAYERS if hasattr(module, name))
    llama = importlib.import_module("transformers.models.llama.modeling_llama").LlamaDecoderLayer
    assert inspect.getsource(layer.forward) == inspect.getsource(llama.forward)


@KINDS
@pytest.mark.parametrize("as_mask", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_states_and_gradients_equal_the_full_layers(
    kind: str, as_mask: bool, checkpointing: bool, ids_RT: Tensor
) -> None:
    model = model_of(kind)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model.train()
    read_at = index_of_tokens(as_mask)
    whole_MD = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state[read_at]
    expected = gradients_of(model, whole_MD)
    hidden_MD = read_states(model.model, read_at, input_ids=ids_RT)
    assert hidden_MD.shape == (3, UNITS)
    assert torch.allclose(hidden_MD, whole_MD, atol=1e-6)
    gradients = gradients_of(model, hidden_MD)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(
            gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
        ), name


def test_the_mlp_gets_only_the_tokens_that_are_read(ids_RT: Tensor) -> None:
    model = model_of("llama")
    first, last = (shapes_seen_by(layer.mlp) for layer in model.model.layers)
    read_states(model.model, index_of_tokens(False), input_ids=ids_RT)
    model.model(input_ids=ids_RT)
    assert first == [(ROWS, TOKENS, UNITS), (ROWS, TOKENS, UNITS)]
    assert last == [(3, UNITS), (ROWS, TOKENS, UNITS)]


def test_another_class_of_layer_is_computed_for_all_tokens(
    ids_RT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_layer, "LAYERS", ())
    model = model_of("llama")
    seen = shapes_seen_by(model.model.layers[-1].mlp)
    hidden_MD = read_states(model.model, index_of_tokens(False), input_ids=ids_RT)
    assert seen == [(ROWS, TOKENS, UNITS)]
    assert torch.equal(hidden_MD, model.model(input_ids=ids_RT).last_hidden_state[index_of_tokens(False)])


def test_a_model_without_a_list_of_layers_is_computed_for_all_tokens(ids_RT: Tensor) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=UNITS, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    last_layer.enable(model)
    hidden_MD = read_states(model.transformer, index_of_tokens(True), input_ids=ids_RT)
    assert torch.equal(
        hidden_MD, model.transformer(input_ids=ids_RT).last_hidden_state[index_of_tokens(True)]
    )


def test_a_failed_pass_leaves_no_hook(ids_RT: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    output = model.model.layers[-1].self_attn.o_proj

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(output, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            read_states(model.model, index_of_tokens(False), input_ids=ids_RT)
    assert model.model(input_ids=ids_RT).last_hidden_state.shape == (ROWS, TOKENS, UNITS)


def shapes_seen_by(module: nn.Module) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes
