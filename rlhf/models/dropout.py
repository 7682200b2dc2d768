"""Disable a base's dropout, layer drop and router noise, so that training and evaluation compute the same.

A policy is compared with its reference, and an update computes the same tokens several times. Noise of the
frozen base would look like a change of the policy. The adapter's dropout is added later and stays active.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf.core.errors import ModelError

NOISE = ("drop", "jitter")
"""Parts of the names of these probabilities: `attention_dropout`, `resid_pdrop`, `router_jitter_noise`."""
SAMPLING_ROUTER = "sparsemixer"
"""transformers' function of a router with noise of its own."""
CONFIGURED_NOISE = "configured_noise"
"""Attribute of a model with the original values of its config."""


def require_switchable(model: PreTrainedModel) -> None:
    """Require noise that can be switched off without a change of evaluation.

    The router of Phi-3.5-MoE samples experts in training, and reads its noise setting in evaluation too.

    Raises:
        ModelError: the model has such a router.
    """
    if any(hasattr(sys.modules[type(module).__module__], SAMPLING_ROUTER) for module in model.modules()):
        raise ModelError(
            f"The router of {model.config.model_type} samples experts in training, which has no switch.",
            allowed="models without noise, or with dropout",
            fix="model.base=another model",
        )


def switch_off(model: PreTrainedModel) -> None:
    """Set all noise probabilities to 0, in the modules and in the configs that they read.

    Raises:
        ModelError: see `require_switchable`.
    """
    require_switchable(model)
    setattr(model, CONFIGURED_NOISE, dict(_noise(model.config)))
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - base class of torch's dropouts
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, _ in list(_noise(holder)):
                setattr(holder, name, 0.0)


def config_with_own_noise(model: PreTrainedModel) -> Any:
    """A copy of a model's config with the original noise probabilities, for saving."""
    config = copy.deepcopy(model.config)
    for name, value in getattr(model, CONFIGURED_NOISE, {}).items():
        setattr(config, name, value)
    return config


def _noise(holder: Any) -> Iterator[tuple[str, float]]:
    for name, value in vars(holder).items() if holder is not None else ():
        if isinstance(value, float) and value and any(word in name for word in NOISE):
            yield name, value
