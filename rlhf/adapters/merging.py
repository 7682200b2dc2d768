"""An adapter merged into plain weights: W + B A, in float32 and layer by layer, then rounded once to the format asked for.

A base that was in 4 bits while the adapter was trained is dequantized first, for those are the weights the adapter belongs to:
on the 16-bit original it would be another model. A merge *into* 4-bit weights is refused, since their steps are larger than
an adapter's update: at |dW| / |W| = 1 %, what is left of the update in NF4 weights has a cosine of 0.035 with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from rlhf.adapters.storage import Adapter
from rlhf.core.errors import DivergenceError, ModelError, did_you_mean
from rlhf.models.bases import read_config, stored_quantization
from rlhf.models.loading import load_causal

TOLERANCES = {"bfloat16": 0.25, "float16": 0.05, "float32": 0.001}
"""Formats a merged model may have, and how far what its weights compute may move by rounding them.

On SmolLM2-135M scores moved by 0.1, 0.011 and 3e-6; without the adapter they would move by whole units.
"""

_NO_MERGE_INTO_FEW_BITS = "A merge into 4-bit weights loses the adapter: their steps are larger than its update, which is rounded away."


def require_format(dtype: str) -> None:
    """Make sure that weights can be written in this format.

    Raises:
        ModelError: they cannot; for a format of few bits, with the reason.
    """
    if dtype in TOLERANCES:
        return
    allowed = f"{', '.join(TOLERANCES)}; keep the adapter, and put it on the 4-bit base where that is loaded"
    if any(mark in dtype for mark in ("4", "8")):
        raise ModelError(
            f"{dtype}: {_NO_MERGE_INTO_FEW_BITS}",
            allowed=allowed,
            fix="--dtype bfloat16, and quantize the merged model afterwards if you must",
        )
    raise ModelError(f"--dtype {dtype} is not known.{did_you_mean(dtype, TOLERANCES)}", allowed=allowed)


def load_as_trained(card: Mapping[str, Any], *, writes: bool) -> PreTrainedModel:
    """The base of an adapter with the very weights it was trained on, in float32 and in the machine's memory.

    `writes`: it is a policy's, and its output embedding is needed. float32, so that before and after differ by the rounding of the merged weights and by nothing else.

    Raises:
        ModelError: the base is stored quantized, or nothing is there.
    """
    base, revision = card["base"], card["revision"]
    try:
        config = read_config(base, revision)
    except ModelError as error:
        raise ModelError(
            f"The base {base!r} of this adapter could not be loaded: {error.found}",
            fix="put the base where it was, or change `base` in the adapter's reward.json or policy.json",
        ) from error
    if method := stored_quantization(config):
        raise ModelError(
            f"The base {base!r} is stored quantized ({method}). {_NO_MERGE_INTO_FEW_BITS}",
            allowed="an adapter whose base is stored in 16 or 32 bits; it may have been loaded in 4 for training",
            fix="use base and adapter side by side, as the adapter's card shows",
        )
    # An adapter's card without the two keys is one of a plain base.
    dtype, quantization = card.get("dtype", "bfloat16"), card.get("quantization", "none")
    model = load_causal(
        base, revision=revision, dtype=dtype, quantization=quantization, on_host=True, writes=writes
    )
    if quantization != "none":
        told = logging.get_verbosity()
        logging.set_verbosity_error()  # it would name the format of every layer
        try:
            model = model.dequantize()
        finally:
            logging.set_verbosity(told)
    return model.to("cpu", torch.float32)


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: Adapter, dtype: str) -> PreTrainedModel:
    """The bare base, in float32, with the adapter's update in its weights, and then in `dtype`; it is changed.

    Raises:
        ModelError: the adapter is more than a LoRA.
    """
    for name, factors in adapter.update().items():
        delta = factors.B_OR @ factors.A_RI
        # GPT-2 keeps its matrices transposed.
        model.get_submodule(name).weight += delta.T if adapter.config.fan_in_fan_out else delta
    return model.to(getattr(torch, dtype))


def trained_on(card: Mapping[str, Any]) -> str:
    """What a card has to say of a base that was quantized; else nothing."""
    if card.get("quantization", "none") == "none":
        return ""
    return (
        "The base was in 4 bits (NF4) while the adapter was trained. These are those weights, dequantized, with the adapter "
        "merged in; merged into the 16-bit original, it would be another model.\n\n"
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """What a merged model computes beside what the adapter did."""

    count: int
    largest: float
    tolerance: float

    def __str__(self) -> str:
        return f"{self.largest:.2g} over {self.count} conversations (allowed: {self.tolerance:g})"


def verify(what: str, differences: Sequence[float], tolerance: float) -> Verification:
    """The largest of the differences between before and after the merge.

    Raises:
        DivergenceError: it is beyond the tolerance.
    """
    found = Verification(len(differences), max(differences), tolerance)
    if not found.largest <= tolerance:  # a NaN is beyond it too
        raise DivergenceError(
            f"The merged model is not the one that was trained: {what} differ by up to {found}. Nothing was written.",
            allowed=f"a difference of at most {tolerance:g}",
            fix="--dtype float32; if that does not help, the base in memory is not the one on disk",
        )
    return found
