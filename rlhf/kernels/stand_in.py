"""A small random model of the same architecture, for measurements that the weights do not matter for.

A base that will be sharded waits in host memory, where fused kernels and 4-bit products of a GPU cannot run,
and float32 passes of a large model take minutes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

FEWEST_LAYERS = 2


def small_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A random model of the class and config, on a device, with the first layers that have all kinds.

    The global random state is left as it is.
    """
    config = copy.deepcopy(model.config)
    for holder in {id(each): each for each in (config, config.get_text_config())}.values():
        keep_first_layers(holder)
        holder.__dict__.pop("quantization_config", None)
    before = torch.get_default_dtype()
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []), torch.device(device):
        try:
            # Not `_from_config`, which shards the weights where DeepSpeed is configured.
            torch.set_default_dtype(model.dtype)
            small = type(model)(config)
        finally:
            torch.set_default_dtype(before)
    return small.to(device).eval().requires_grad_(False)


def keep_first_layers(config: Any) -> None:
    """Lower `num_hidden_layers`, and cut lists with a value a layer, to the layers that have all kinds."""
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth <= FEWEST_LAYERS:
        return
    lists = {
        name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == depth
    }
    kinds = [tuple(map(repr, values)) for values in zip(*lists.values(), strict=True)]
    kept = max([FEWEST_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds))])
    config.num_hidden_layers = kept
    for name, value in lists.items():
        setattr(config, name, value[:kept])
