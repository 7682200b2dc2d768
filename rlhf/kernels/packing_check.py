"""Check whether a model supports packed rows; otherwise every sequence gets a row of its own.

Packing needs layers that respect a 4-D attention mask and position ids. Convolutions and recurrences mix
neighbouring tokens regardless of the mask, and some rotary embeddings depend on the longest position of a
row. Such models train on rows of one sequence, padded on the right, which causal layers compute like the
sequence alone. Known cases are recognised from the model's config and layers; any other model is measured:
one packed row against its sequences alone, in float32.

Shapes: R rows, T tokens, D hidden units.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf.core.errors import ModelError
from rlhf.distributed import processes
from rlhf.distributed.sharding import compute_device
from rlhf.kernels import adapter_layers
from rlhf.kernels.attention import PACKED
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.last_layer import every_state
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.kernels.precision import layers_in_float32
from rlhf.kernels.stand_in import small_copy

DECISION = "rlhf_one_per_row"
"""Attribute of a checked model: whether it needs one sequence per row."""
PACKABLE = {"full_attention", "sliding_attention"}
"""Values of transformers' `layer_types` whose layers respect a 4-D mask."""
BY_LENGTH = {"dynamic", "longrope"}
"""Types of RoPE that transformers scales by the longest position of the batch."""
TOLERANCE = 1e-2
"""Largest relative difference of hidden states. Rounding in float32 stays below 1e-4; a leak was never below
0.1."""

WINDOW, SHORT_WINDOW = "sliding_window", 3
"""transformers' attribute of configs and attention modules, and its value in the measurement."""
LOGITS_TOLERANCE = 1e-3
"""Largest relative difference of logits; the same products in the same format do not differ."""


def decide_packing(model: PreTrainedModel, *, wanted: bool = True, logits: bool = False) -> None:
    """Check a model once, before it is sharded, and store the decision on it; a collective call.

    A model that waits in host memory to be sharded over GPUs is measured by a small one of its kind there.

    Args:
        wanted: `model.packing` of the config; False: one sequence per row, without checking packed rows.
        logits: log-probabilities will be computed from hidden states and head, which is checked too.

    Raises:
        ModelError: even padded rows differ from the sequences alone, training mode from evaluation mode, or
            logits from the head's products.
    """
    if hasattr(model, DECISION):
        return
    _scale_by_row(model)

    def examine() -> str | None:
        device, measured = compute_device(model), model
        if model.device.type != device.type:
            measured = small_copy(model, device)
            _scale_by_row(measured)
        require_no_noise(measured)
        if logits:
            require_logits_of_the_head(measured)
        return _reason(measured, wanted)

    reason = processes.from_main(examine)
    setattr(model, DECISION, reason is not None)
    if reason is not None and processes.is_main():
        _announce(model.config.model_type, reason)


def one_per_row(model: PreTrainedModel) -> bool:
    """Whether this model needs one sequence per row; checks the model if it was not checked yet."""
    decide_packing(model)
    return bool(getattr(model, DECISION))


@functools.cache
def _announce(model_type: str, reason: str) -> None:
    print(f"{model_type}: one sequence per row, without packing: {reason}.", flush=True)


def _reason(model: PreTrainedModel, wanted: bool) -> str | None:
    """The reason against packed rows; None if the model supports them."""
    reason = reason_by_kind(model) if wanted else "model.packing is false"
    if reason is None:
        difference = largest_difference(model, one_per_row=False)
        if difference <= TOLERANCE:
            return None
        reason = (
            f"hidden states of a packed row differ by {difference:.2g} (relative) from those of its "
            "sequences alone, so a layer ignores the attention mask or the position ids"
        )
    difference = largest_difference(model, one_per_row=True)
    if not difference <= TOLERANCE:  # NaN too
        raise ModelError(
            f"{model.config.model_type}: hidden states of padded rows differ by {difference:.2g} (relative) "
            "from those of the same sequences alone.",
            allowed="causal models, in which padding on the right does not change earlier tokens",
            fix="model.base=NAME of a causal language model",
        )
    return reason


def reason_by_kind(model: PreTrainedModel) -> str | None:
    """The reason against packed rows in a model's layers and attention; None if they show none."""
    return reason_by_layers(model) or _reason_by_attention(model)


def reason_by_layers(model: PreTrainedModel) -> str | None:
    """The reason against packed rows in a model's config and layers; None if they show none."""
    config = model.config.get_text_config()
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - PACKABLE)
    scaled = sorted(_rope_types(config) & BY_LENGTH)
    convolutions = [
        name for name, module in model.base_model.named_modules() if isinstance(module, nn.Conv1d)
    ]
    if kinds:
        return f"layers of the kind {', '.join(kinds)} ignore the attention mask of a packed row"
    if convolutions:
        return f"convolutions ({convolutions[0]}) mix the tokens of neighbouring sequences"
    if scaled:
        return f"{scaled[0]} RoPE depends on the length of the row"
    return None


def _reason_by_attention(model: PreTrainedModel) -> str | None:
    attention = model.config._attn_implementation  # noqa: SLF001
    if attention == PACKED:
        return None
    if attention != "sdpa" or not type(model)._can_set_attn_implementation():  # noqa: SLF001
        return "it does not use transformers' attention interface"
    if getattr(model.config.get_text_config(), "sliding_window", None):
        return "transformers' attention ignores sliding windows under a mask of packed rows"
    return None


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {str(part.get("rope_type", "default")) for part in (nested or [rope])}


def _scale_by_row(model: PreTrainedModel) -> None:
    """Compute length-dependent rotary embeddings row by row, independent of earlier rows."""
    if not _rope_types(model.config.get_text_config()) & BY_LENGTH:
        return
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        rope_types = set(rope_type.values()) if isinstance(rope_type, dict) else {rope_type}
        if rope_types & BY_LENGTH:
            module.forward = types.MethodType(functools.partial(_row_by_row, original=module.forward), module)


def _row_by_row(
    module: Any, x: Tensor, position_ids: Tensor, *args: Any, original: Any, **kwargs: Any
) -> Any:
    rows = []
    for positions_T in position_ids:
        _reset_lengths(module)
        rows.append(original(x, positions_T[None], *args, **kwargs))
    return tuple(torch.cat(tensors) for tensors in zip(*rows, strict=True))


def _reset_lengths(module: Any) -> None:
    """Reset the frequencies that transformers caches from an earlier, longer row."""
    attributes = dict(module.named_buffers(recurse=False)) | vars(module)
    for name, value in attributes.items():
        if name.endswith("original_inv_freq"):
            setattr(module, name.replace("original_", ""), value)
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, module.original_max_seq_len)


def largest_difference(model: PreTrainedModel, *, one_per_row: bool) -> float:
    """The largest relative difference between hidden states of a packed row and of its sequences alone.

        max over tokens of |h_packed - h_alone| / |h_alone|

    Computed in float32, layer by layer, so that rounding is not mistaken for a leak. The packed row has one
    more sequence with positions at the end of the context, for layers that depend on the longest position of
    a row.
    """
    batch, sequences = _probe(model, one_per_row=one_per_row)
    body, device = model.base_model, model.device
    worst = torch.zeros((), device=device)
    with measuring(model), short_windows(model), layers_in_float32(body):
        hidden_RTD = every_state(body, **packed_inputs(batch.to(device)))
        for branch, ids in enumerate(sequences):
            alone_TD = every_state(body, input_ids=torch.tensor([ids], device=device))[0]
            rows, columns = torch.nonzero(batch.branch_RT == branch, as_tuple=True)
            expected = alone_TD[batch.positions_RT[rows, columns].to(device)]
            difference = hidden_RTD[rows.to(device), columns.to(device)] - expected
            relative = difference.norm(dim=-1) / expected.norm(dim=-1)
            worst = torch.maximum(worst, relative.max())  # NaN stays
    return float(worst)


def require_no_noise(model: PreTrainedModel) -> None:
    """Require that training mode computes what evaluation mode does, measured on a few tokens.

    `rlhf.models.dropout` switches off the noise that it knows; this finds others. The dropout of adapters is
    left out.

    Raises:
        ModelError: the modes differ.
    """
    _, sequences = _probe(model, one_per_row=True)
    ids_1T = torch.tensor([sequences[0]], device=model.device)
    states = []
    with measuring(model), layers_in_float32(model.base_model):
        for mode in (False, True):
            model.train(mode)
            adapter_layers.without_dropout(model)  # an adapter's dropout is intended
            states.append(every_state(model.base_model, input_ids=ids_1T))
    difference = float((states[0] - states[1]).norm() / states[0].norm())
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{model.config.model_type} computes other hidden states in training than in evaluation, with "
            f"its dropout off: they differ by {difference:.2g} (relative).",
            allowed="models without other noise than dropout",
            fix="model.base=another model; docs/models.md lists the architectures that were tested",
        )


def require_logits_of_the_head(model: PreTrainedModel) -> None:
    """Require logits that are the products of hidden states and head, measured on a few tokens.

    `rlhf.models.bases.require_plain_logits` knows the settings of tested architectures; this finds others.

    Raises:
        ModelError: the model changes its logits further.
    """
    _, sequences = _probe(model, one_per_row=True)
    ids_1T = torch.tensor([sequences[0]], device=model.device)
    head: Any = model.get_output_embeddings()
    with measuring(model):
        expected_1TV = functional.linear(every_state(model.base_model, input_ids=ids_1T), head.weight)
        logits_1TV = model(input_ids=ids_1T, use_cache=False).logits
    difference = float((logits_1TV.float() - expected_1TV.float()).norm() / expected_1TV.float().norm())
    if not difference <= LOGITS_TOLERANCE:
        raise ModelError(
            f"{model.config.model_type} changes its logits after the head: they differ by {difference:.2g} "
            "(relative) from the products of hidden states and head.",
            allowed="models whose logits are these products, such as Llama, Qwen or Mistral",
            fix="model.base=another model; docs/models.md lists the architectures that were tested",
        )


def _probe(model: PreTrainedModel, *, one_per_row: bool) -> tuple[PackedBatch, list[tuple[int, ...]]]:
    """A small packed batch, and its sequences to compare."""
    config = model.config.get_text_config()
    words = iter((7 * number + 3) % config.vocab_size for number in range(100))

    def take(count: int) -> tuple[int, ...]:
        return tuple(next(words) for _ in range(count))

    trees = [Tree(take(7), (take(5), take(4))), Tree(take(3), (take(6),)), Tree((), (take(2),))]
    (batch,) = pack(trees, 1024, pad_id=0, one_per_row=one_per_row)
    sequences = [tree.trunk + branch for tree in trees for branch in tree.branches]
    context = getattr(config, "max_position_embeddings", None)
    if not one_per_row and context:
        far_RT = batch.branch_RT == len(sequences) - 1
        moved_RT = batch.positions_RT + (context - len(sequences[-1]))
        batch = dataclasses.replace(batch, positions_RT=torch.where(far_RT, moved_RT, batch.positions_RT))
        sequences = sequences[:-1]
    return batch, sequences


@contextmanager
def measuring(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients or autocast within the block; then the former mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(was_training)


@contextmanager
def short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Shorten sliding windows within the block, so that a few tokens exceed them.

    Some models apply a window only in the mask that they make of a 2-D mask, and none to a packed row.
    """
    configs = {id(config): config for config in (getattr(m, "config", None) for m in model.modules())}
    holders = [
        holder
        for holder in (*configs.values(), *model.modules())
        if isinstance(getattr(holder, "__dict__", {}).get(WINDOW), int)
    ]
    windows = [getattr(holder, WINDOW) for holder in holders]
    try:
        for holder in holders:
            setattr(holder, WINDOW, SHORT_WINDOW)
        yield
    finally:
        for holder, window in zip(holders, windows, strict=True):
            setattr(holder, WINDOW, window)
