"""Choose the target layers of an adapter.

In a mixture of experts, the experts of a layer are one tensor, selected by a router. PEFT can adapt both, but
neither `rlhf export` nor vLLM supports such adapters. So adapters target only layers outside the expert
blocks: the attention.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.core.errors import ModelError, did_you_mean

ALL_LINEAR = "all-linear"
HEADS = ("score", "value_head")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of a model by name, without its heads."""
    output = model.get_output_embeddings()
    return {
        place: layer
        for place, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output and place not in HEADS
    }


def expert_blocks(model: nn.Module) -> list[str]:
    """The names of a model's expert blocks: router, experts and shared experts."""
    return sorted(
        {
            place.rpartition(".")[0]
            for place, module in model.named_modules()
            if place.endswith(".experts") or type(module).__name__.endswith("Experts")
        }
    )


def adapter_targets(model: PreTrainedModel, targets: str | Iterable[str]) -> str | list[str]:
    """The target names of an adapter.

    `all-linear`, or in a mixture of experts the layers outside expert blocks.

    Raises:
        ModelError: a target does not exist, is the head, or is in an expert block.
    """
    blocks = tuple(f"{place}." for place in expert_blocks(model))
    layers = linear_layers(model)
    experts = {_name(path) for path in layers if path.startswith(blocks)} if blocks else set()
    names = {_name(path) for path in layers} - experts
    if not blocks and targets == ALL_LINEAR:
        return ALL_LINEAR
    if targets == ALL_LINEAR:
        return sorted(names)
    wanted = [targets] if isinstance(targets, str) else sorted(targets)
    inside = (
        {_name(place) for place, _ in model.named_modules() if place.startswith(blocks)} if blocks else set()
    )
    inside |= (
        {_name(name) for name, _ in model.named_parameters() if name.startswith(blocks)} if blocks else set()
    )
    if refused := [name for name in wanted if name in inside and name not in names]:
        raise ModelError(
            f"adapter.targets: {', '.join(refused)} is in an expert block, whose adapters can neither be "
            "exported nor used by vLLM.",
            allowed=f"`{ALL_LINEAR}` (the layers outside expert blocks), or some of "
            f"{', '.join(sorted(names))}",
            fix=f"adapter.targets={ALL_LINEAR}",
        )
    if missing := [name for name in wanted if name not in names]:
        raise ModelError(
            f"adapter.targets: this model has no layer {', '.join(missing)}."
            f"{did_you_mean(missing[0], names)}",
            allowed=f"`{ALL_LINEAR}`, or some of {', '.join(sorted(names))}",
            fix=f"adapter.targets={ALL_LINEAR}",
        )
    return wanted


def _name(place: str) -> str:
    return place.rpartition(".")[2]
