"""Change the weights of adapters that are attached to a model: load, replace, blend."""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rlhf.adapters.lowrank import Factors, Update, padded, rank_of, weighted_sum
from rlhf.core.errors import ModelError
from rlhf.kernels import adapter_layers
from rlhf.models.loading import POLICY, PeftModel, keep_trainable, reward_head, upcast_trainable


def replace_trained(model: PeftModel, update: Update, head_AD: Tensor | None) -> None:
    """Put an update, and a head where there is one, in place of those a model was trained with; the rank may be another.

    In place: PEFT cannot take away a classifier's only adapter and give it another.
    """
    rank, config = rank_of(update), model.peft_config[POLICY]
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    for place, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            A, B = layer.lora_A[POLICY], layer.lora_B[POLICY]
            factors = update.get(place) or Factors(B.weight[:, :0], A.weight[:0])
            B_OR, A_RI = padded(factors, rank)
            A.weight.data, B.weight.data = A_RI.to(A.weight), B_OR.to(B.weight)
            A.out_features = B.in_features = layer.r[POLICY] = layer.lora_alpha[POLICY] = rank
            layer.scaling[POLICY] = 1.0
    if head_AD is not None:
        reward_head(model).weight.data.copy_(head_AD)


def set_weights(model: PeftModel, weights: Mapping[str, Tensor]) -> None:
    """Give the trained adapter, and the head beside it, the weights of a file, all of them.

    Raises:
        ModelError: a weight has no place in the model, or another shape there.
    """
    try:
        result = set_peft_model_state_dict(model, dict(weights), adapter_name=POLICY)
    except RuntimeError as error:  # torch's word for another shape
        raise ModelError(f"An adapter does not fit the model: {error}") from error
    if result.unexpected_keys:
        raise ModelError(
            f"{len(result.unexpected_keys)} weights of the adapter have no place in the model, "
            f"the first is {result.unexpected_keys[0]}."
        )
    upcast_trainable(model)


def blend(model: PeftModel, name: str, weights: Mapping[str, float]) -> None:
    """Attach the role `name`, whose weight update is exactly the weighted sum of those of other roles.

    See `rlhf.adapters.lowrank.weighted_sum`: ranks add up. PEFT's `add_weighted_adapter` rounds to the base's format even with its exact
    `cat`; its `linear` adds up the A and the B, whose product has cross terms B_i A_j besides.

    Raises:
        ModelError: an adapter is more than a product of two matrices (DoRA).
    """
    if any(model.peft_config[part].use_dora for part in weights):
        raise ModelError("A DoRA adapter cannot be blended.", allowed="LoRA adapters, whose updates add up")
    layers = {
        place: layer
        for place, layer in model.get_base_model().named_modules()
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
