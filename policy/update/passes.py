"""Passes over a packed row besides the one that is differentiated.

`model` is the model as transformers wrapped it for several processes, `peft` the same without, whose roles are switched.

Shapes: M tokens of all answers of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.critic import token_values
from policy.update.rows import Row, token_logps
from rlhf.models.loading import CRITIC, PeftModel, autocast, base_of, reference_role, role


def reference_logps(model: Any, peft: PeftModel | PreTrainedModel, row: Row) -> Tensor:
    """Log-probabilities by what the policy is held to: a role on its own base, or a frozen copy of that, which has no wrapping."""
    # What accelerate puts around the passes of the model that it prepared, a frozen copy must be given.
    with torch.no_grad(), role(peft, reference_role(peft)), autocast(base_of(peft)):
        return token_logps(model, row.packed, entropy=False)[0]


def measuring_passes(model: Any, peft: PeftModel, row: Row) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What an algorithm with a critic asks of a row before its first loss: (logps_M, reference_M, entropy_M, answer_M, values_M)."""
    with torch.no_grad():
        logps_M, entropy_M, answer_M = token_logps(model, row.packed)
        with role(peft, CRITIC):
            values_M = token_values(model, row.packed)
    return logps_M, reference_logps(model, peft, row), entropy_M, answer_M, values_M


def idle_passes(
    model: Any,
    peft: PeftModel | PreTrainedModel,
    row: Row,
    backward: Callable[[Tensor], None],
    *,
    reference: tuple[Any, PeftModel | PreTrainedModel] | None,
    has_critic: bool,
) -> None:
    """What a row takes, to no effect: all processes make the passes of a sharded model, also those with fewer rows.

    Args:
        reference: what `reference_logps` takes, where the pass over the reference is part of it.
    """
    logps_M, _, _ = token_logps(model, row.packed)
    if reference is not None:
        reference_logps(*reference, row)
    backward(0.0 * logps_M.sum())
    if has_critic:
        with role(peft, CRITIC):
            backward(0.0 * token_values(model, row.packed).sum())
