"""Merge an adapter into plain weights.

W + B A in float32, layer by layer, then rounded once to the output dtype.

If the adapter was trained on a 4-bit base, the 4-bit weights are dequantized and merged: with the 16-bit
original it would be another model. A merge *into* 4-bit weights is refused, since their quantization steps
are larger than an adapter's
update: at |dW| / |W| = 1 %, the update that remains in NF4 weights has a cosine of 0.035 with the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from rlhf.adapters.storage import Adapter
from rlhf.core.errors import DivergenceError, ModelError, RefusalError, did_you_mean
from rlhf.core.records import Conversation
from rlhf.models.bases import read_config, stored_quantization
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal

TOLERANCES = {"bfloat16": 0.25, "float16": 0.05, "float32": 0.001}
"""Output dtypes, and the largest difference of outputs allowed by rounding to them.

On SmolLM2-135M scores changed by 0.1, 0.011 and 3e-6; without the adapter they would change by more than 1.
"""

_NO_QUANTIZED_MERGE = (
    "A merge into 4-bit weights loses the adapter: its update is smaller than their quantization steps."
)


def require_format(dtype: str) -> None:
    """Require a supported output dtype.

    Raises:
        ModelError: it is not supported.
    """
    if dtype in TOLERANCES:
        return
    allowed = f"{', '.join(TOLERANCES)}; or keep the adapter and attach it to the 4-bit base"
    if any(bits in dtype for bits in ("4", "8")):
        raise ModelError(
            f"{dtype}: {_NO_QUANTIZED_MERGE}",
            allowed=allowed,
            fix="--dtype bfloat16, then quantize the merged model",
        )
    raise ModelError(f"--dtype {dtype} is not known.{did_you_mean(dtype, TOLERANCES)}", allowed=allowed)


def load_as_trained(card: Mapping[str, Any], *, writes: bool) -> PreTrainedModel:
    """Load the base of an adapter with the weights it was trained on, in float32 on the CPU.

    In float32 the outputs before and after the merge differ only by the rounding of the merged weights.

    Args:
        writes: the output embedding is needed, as by a policy.

    Raises:
        ModelError: the base is stored quantized, or cannot be loaded.
    """
    base, revision = card["base"], card["revision"]
    try:
        config = read_config(base, revision)
    except ModelError as error:
        raise ModelError(
            f"The base {base!r} of this adapter could not be loaded: {error.found}",
            fix="restore the base, or change `base` in the adapter's reward.json or policy.json",
        ) from error
    if method := stored_quantization(config):
        raise ModelError(
            f"The base {base!r} is stored quantized ({method}). {_NO_QUANTIZED_MERGE}",
            allowed="an adapter whose base is stored in 16 or 32 bits, even if it was loaded in 4 bits for "
            "training",
            fix="use base and adapter without a merge, as the adapter's card shows",
        )
    # Cards without these keys are of a base that was not quantized.
    dtype, quantization = card.get("dtype", "bfloat16"), card.get("quantization", "none")
    model = load_causal(
        base, revision=revision, dtype=dtype, quantization=quantization, on_host=True, writes=writes
    )
    if quantization != "none":
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # transformers would log every layer
        try:
            model = model.dequantize()
        finally:
            logging.set_verbosity(verbosity)
    return model.to("cpu", torch.float32)


def usable(conversations: Sequence[Conversation], chat: Chat, context: int | None) -> list[Conversation]:
    """The conversations that the chat template renders and that fit into the context of a base.

    Raises:
        ModelError: there are none.
    """
    kept = []
    for conversation in conversations:
        try:
            length = len(chat.conversation_ids(conversation))
        except RefusalError:
            continue
        if context is None or length <= context:
            kept.append(conversation)
    if not kept:
        raise ModelError(
            f"None of {len(conversations)} conversations can be compared before and after the merge: the "
            f"chat template refuses them, or they exceed the context of {context} tokens.",
            allowed="a model whose template renders a question with an answer",
        )
    return kept


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: Adapter, dtype: str) -> PreTrainedModel:
    """Add the adapter's update to the weights of a float32 base, in place, and convert it to `dtype`.

    Raises:
        ModelError: the adapter is not a plain LoRA.
    """
    for name, factors in adapter.update().items():
        delta = factors.B_OR @ factors.A_RI
        layer = model.get_submodule(name)
        # GPT-2 stores its matrices transposed; the adapter's `fan_in_fan_out` is not always set.
        layer.weight += delta.T if isinstance(layer, Conv1D) else delta
    return model.to(getattr(torch, dtype))


def trained_on(card: Mapping[str, Any]) -> str:
    """A paragraph for the model card about a quantized base; empty otherwise."""
    if card.get("quantization", "none") == "none":
        return ""
    return (
        "The adapter was trained on the base in 4 bits (NF4). These are the dequantized 4-bit weights with "
        "the adapter "
        "merged; merged into the 16-bit original, it would be another model.\n\n"
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """The difference between the outputs of a merged model and of the adapter."""

    count: int
    largest: float
    tolerance: float

    def __str__(self) -> str:
        return f"{self.largest:.2g} over {self.count} conversations (allowed: {self.tolerance:g})"


def verify(outputs: str, differences: Sequence[float], tolerance: float) -> Verification:
    """Compare the largest difference before and after the merge with the tolerance.

    Args:
        outputs: what differs, for the message: "scores".

    Raises:
        DivergenceError: it exceeds the tolerance.
    """
    result = Verification(len(differences), max(differences), tolerance)
    if not result.largest <= tolerance:  # NaN too
        raise DivergenceError(
            f"The merged model differs from the trained one: {outputs} differ by up to {result}. Nothing "
            "was written.",
            allowed=f"a difference of at most {tolerance:g}",
            fix="--dtype float32; if that does not help, check that the base is the one of the training",
        )
    return result
