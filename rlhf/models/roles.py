"""Switch between the adapters on one base, which happens for every packed row.

PEFT's own methods walk over all modules and set `requires_grad` of every parameter, and meanwhile a GPU may
run out of queued kernels. `role` changes the switches of the adapted layers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from rlhf.distributed.sharding import reshard

SWITCHED = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""PEFT's layers with an active adapter: adapted ones, and whole modules that an adapter trains."""


@contextlib.contextmanager
def role(model: PeftModel | PreTrainedModel, adapter: str | None) -> Iterator[None]:
    """Activate an adapter, or none, within the block; trained parameters stay trainable.

    Raises:
        ValueError: there is no adapter of that name.
    """
    if not isinstance(model, PeftModel):  # it has no adapters
        assert adapter is None
        yield
        return
    if adapter is not None and adapter not in model.peft_config:
        raise ValueError(f"adapter {adapter!r} not in {sorted(model.peft_config)}")
    reshard(model)
    owners: list[Any] = [model, model.base_model, *_switched(model.base_model)]
    before = [{name: getattr(owner, name) for name in _switches(owner, adapter)} for owner in owners]
    try:
        for owner in owners:
            vars(owner).update(_switches(owner, adapter))
        yield
    finally:
        reshard(model)
        for owner, values in zip(owners, before, strict=True):
            vars(owner).update(values)


def _switches(owner: Any, adapter: str | None) -> dict[str, Any]:
    """The attributes by which a model or a layer of PEFT activates an adapter, or none."""
    if isinstance(owner, SWITCHED):
        if adapter is None:
            return {"_disable_adapters": True}
        absent = isinstance(owner, AuxiliaryTrainingWrapper) and adapter not in owner._adapters  # noqa: SLF001
        return {"_active_adapter": [] if absent else [adapter]}
    if adapter is not None:
        return {"active_adapter": adapter}
    return {"_adapters_disabled": True} if isinstance(owner, PeftModel) else {}


def _switched(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of PEFT in a model; none has another one inside."""
    for child in module.children():
        if isinstance(child, SWITCHED):
            yield child
        else:
            yield from _switched(child)


@contextlib.contextmanager
def keep_trainable(model: PeftModel) -> Iterator[None]:
    """Restore `requires_grad` after the block: PEFT changes it when adapters are added or activated."""
    reshard(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        reshard(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
