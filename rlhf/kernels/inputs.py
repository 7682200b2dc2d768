"""A packed batch as the arguments of a transformers model.

Ids, positions, and the masks of the device's attention.
"""

from __future__ import annotations

from typing import Any

from rlhf.kernels import attention, flex
from rlhf.kernels.packed_batch import PackedBatch


def packed_inputs(batch: PackedBatch) -> dict[str, Any]:
    """The keyword arguments of a forward pass; rows of one sequence need no mask beyond the causal one."""
    if batch.one_per_row:
        return {"input_ids": batch.ids_RT, "position_ids": batch.positions_RT}
    if flex.is_usable(batch.ids_RT.device):
        if "flex" not in batch.cache:
            batch.cache["flex"] = flex.FlexMasks(batch)
        masks = batch.cache["flex"]
        return {
            "input_ids": batch.ids_RT,
            "position_ids": batch.positions_RT,
            "attention_mask": masks.within(None),
            "blocks": masks,
        }
    return {
        "input_ids": batch.ids_RT,
        "position_ids": batch.positions_RT,
        "attention_mask": batch.mask_R1TT(),
        "blocks": attention.blocks_of(batch),
    }


def inputs_for(body: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Adapt the result of `packed_inputs` to a model that does not use our attention.

    A dense mask for FlexMasks.
    """
    masks = inputs.get("blocks")
    if isinstance(masks, flex.FlexMasks) and body.config._attn_implementation != attention.PACKED:  # noqa: SLF001
        return inputs | {"attention_mask": masks.dense_R1TT(), "blocks": []}
    return inputs
