"""A base computes the same in training as in evaluation: its dropout, layer drop and router noise are switched off.

A policy is compared with its reference, and one update reads the same tokens more than once; noise of the frozen base would
count as a change of the policy. Dropout of the adapter is added later and stays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

NOISE = ("drop", "jitter")
"""What the names of such probabilities contain: `attention_dropout`, `resid_pdrop`, `layerdrop`, `router_jitter_noise`."""
OWN_NOISE = "own_noise"
"""The attribute of a model that keeps the values of its config."""


def switch_off(model: PreTrainedModel) -> None:
    """Set every probability of noise to 0, in the modules and in the configs that they read."""
    setattr(model, OWN_NOISE, dict(_noise(model.config)))
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the base of all of torch's
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, _ in list(_noise(holder)):
                setattr(holder, name, 0.0)


def config_with_own_noise(model: PreTrainedModel) -> Any:
    """A copy of a model's config with the values that it was loaded with, to be saved."""
    config = copy.deepcopy(model.config)
    for name, value in getattr(model, OWN_NOISE, {}).items():
        setattr(config, name, value)
    return config


def _noise(holder: Any) -> Iterator[tuple[str, float]]:
    for name, value in vars(holder).items() if holder is not None else ():
        if isinstance(value, float) and value and any(word in name for word in NOISE):
            yield name, value
