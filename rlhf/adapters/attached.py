"""Change the weights of adapters that are attached to a model: load, replace, blend."""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rlhf.adapters.lowrank import Factors, Update, padded, rank_of, weighted_sum
from rlhf.core.errors import ModelError
from rlhf.kernels import adapter_layers
from rlhf.models.loading import PeftModel, reward_head, upcast_trainable
from rlhf.models.names import POLICY
from rlhf.models.roles import keep_trainable


def replace_trained(model: PeftModel, update: Update, head_AD: Tensor | None) -> None:
    """Replace the trained adapter's update, and the head if there is one; the rank may differ.

    In place, since PEFT cannot replace a classifier's only adapter.
    """
    rank, config = rank_of(update), model.peft_config[POLICY]
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            A, B = layer.lora_A[POLICY], layer.lora_B[POLICY]
            factors = update.get(name) or Factors(B.weight[:, :0], A.weight[:0])
            B_OR, A_RI = padded(factors, rank)
            A.weight.data, B.weight.data = A_RI.to(A.weight), B_OR.to(B.weight)
            A.out_features = B.in_features = layer.r[POLICY] = layer.lora_alpha[POLICY] = rank
            layer.scaling[POLICY] = 1.0
    if head_AD is not None:
        reward_head(model).weight.data.copy_(head_AD)


def set_weights(model: PeftModel, weights: Mapping[str, Tensor]) -> None:
    """Load weights into the trained adapter and its head.

    Raises:
        ModelError: a weight does not exist in the model, or has another shape.
    """
    try:
        result = set_peft_model_state_dict(model, dict(weights), adapter_name=POLICY)
    except RuntimeError as error:  # raised by torch for another shape
        raise ModelError(f"An adapter does not fit the model: {error}") from error
    if result.unexpected_keys:
        raise ModelError(
            f"{len(result.unexpected_keys)} weights of the adapter do not exist in the model; "
            f"the first is {result.unexpected_keys[0]}."
        )
    upcast_trainable(model)


def blend(model: PeftModel, name: str, weights: Mapping[str, float]) -> None:
    """Attach the role `name`, whose update is exactly the weighted sum of other roles' updates.

    Ranks add up, see `rlhf.adapters.lowrank.weighted_sum`. PEFT's `add_weighted_adapter` rounds to the base's
    dtype even with its exact `cat`. Its `linear` sums the A and the B, whose product has extra cross terms
    B_i A_j.

    Raises:
        ModelError: an adapter is a DoRA.
    """
    if any(model.peft_config[part].use_dora for part in weights):
        raise ModelError("A DoRA adapter cannot be blended.", allowed="LoRA adapters, whose updates add up")
    layers = {
        path: layer
        for path, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and weights.keys() & layer.lora_A.keys()
    }
    rank = sum(model.peft_config[part].r for part in weights)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), inference_mode=True)
    with keep_trainable(model):
        delete_if_present(model, name)
        model.add_adapter(name, config)
    adapter_layers.enable(model)
    for layer in layers.values():
        parts = [part for part in weights if part in layer.lora_A]
        factors = weighted_sum(
            [
                (
                    weights[part] * layer.scaling[part],
                    Factors(layer.lora_B[part].weight.data, layer.lora_A[part].weight.data),
                )
                for part in parts
            ]
        )
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = factors.A_RI, factors.B_OR


def delete_if_present(model: PeftModel, name: str) -> None:
    """Delete the adapter `name`, if there is one."""
    if name in model.peft_config:
        model.delete_adapter(name)
