"""Which layers of a base an adapter is put on.

In a mixture of experts, the experts are one tensor a layer and the router picks among them. PEFT can adapt both, but neither
`rlhf export` nor vLLM can use such an adapter. So adapters go on the layers outside the blocks of experts: the attention.
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
    """The linear layers of a model by place, without its heads."""
    output = model.get_output_embeddings()
    return {
        place: layer
        for place, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output and place not in HEADS
    }


def expert_blocks(model: nn.Module) -> list[str]:
    """The places of a model's blocks of experts: router, experts and shared experts."""
    return sorted(
        {
            place.rpartition(".")[0]
            for place, module in model.named_modules()
            if place.endswith(".experts") or type(module).__name__.endswith("Experts")
        }
    )


def adapter_targets(model: PreTrainedModel, targets: str | Iterable[str]) -> str | list[str]:
    """The names of the layers an adapter is for; `all-linear`, or in a mixture of experts those outside the experts' blocks.

    Raises:
        ModelError: a target is not a layer of the model, is its head, or is part of a block of experts.
    """
    blocks = tuple(f"{place}." for place in expert_blocks(model))
    places = linear_layers(model)
    experts = {_name(place) for place in places if place.startswith(blocks)} if blocks else set()
    names = {_name(place) for place in places} - experts
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
    if part := [name for name in wanted if name in inside and name not in names]:
        raise ModelError(
            f"adapter.targets: {', '.join(part)} is part of the mixture of experts, whose adapters cannot be exported "
            "or sampled from by vLLM.",
            allowed=f"`{ALL_LINEAR}`, which takes the layers outside the experts, or some of {', '.join(sorted(names))}",
            fix=f"adapter.targets={ALL_LINEAR}",
        )
    if missing := [name for name in wanted if name not in names]:
        raise ModelError(
            f"The adapter does not fit this model, which has no layer {', '.join(missing)}."
            f"{did_you_mean(missing[0], names)}",
            allowed=f"`{ALL_LINEAR}`, or some of {', '.join(sorted(names))}",
            fix=f"adapter.targets={ALL_LINEAR}",
        )
    return wanted


def _name(place: str) -> str:
    return place.rpartition(".")[2]
