"""The trainers' row computations on fake tensors of a pretended device: a tensor left on the CPU raises.

`python tests/pretended_device.py CASE ...` prints the device of every gradient; run in a process of its own,
since a device is registered once and for all. Nothing is computed: numbers are what other tests look at.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from policy.algorithms.reinforce import Reinforce
from policy.critic import token_values
from policy.rollouts.probe import EngineProbe
from policy.update.forward import pack_groups, reference_logps, token_logps
from policy.update.statistics import UpdateStatistics
from policy.update.step import Update
from reward.training.batches import Item, batches
from reward.training.trainer import HybridRewardTrainer
from rlhf.config.algorithm import AlgorithmConfig, KLConfig
from rlhf.config.reward import StageConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.records import Rollout
from rlhf.kernels import layers
from rlhf.kernels.packing import Tree
from rlhf.models.forwards import enable_packed_logprobs, enable_packed_scores, enable_packed_values
from rlhf.models.loading import PeftModel, autocast, lora_config, with_adapter

DEVICE = "pretend:0"
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
}


def register_device() -> torch.library.Library:
    """The pretended device, with an autocast that casts nothing; the library must be kept."""
    _setup_privateuseone_for_python_backend("pretend")
    vars(vars(torch)["pretend"])["get_amp_supported_dtype"] = lambda: [torch.bfloat16]
    make = torch.tensor

    def tensor(*args: Any, device: Any = None, **named: Any) -> Tensor:
        made = make(*args, **named)  # made on a device, it would ask the device itself
        return made if device is None else made.to(device)

    torch.tensor = tensor  # type: ignore[assignment]
    fake_tensor.CONSTANT_NUMEL_LIMIT = -1  # single numbers would be computed on the device
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library


def build(auto_class: Any, dtype: str) -> PeftModel:
    """A model with an adapter, on no device yet."""
    config = AutoConfig.for_model("llama", **SIZES, num_labels=2)
    with torch.device("meta"):
        base = auto_class.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        layers.enable(base)
        is_reward = auto_class is AutoModelForSequenceClassification
        base.requires_grad_(False)
        settings = lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear", head=is_reward)
        if is_reward:
            enable_packed_scores(base)
        model = with_adapter(base, settings)
    if not is_reward:
        enable_packed_logprobs(base, 1.0)
    return model


def place(model: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor on the pretended device."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        return made.setdefault(id(tensor), torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE))

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(fake(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake(buffer))


def reward_row(dtype: str) -> PeftModel:
    """Forward, every loss term and backward of a packed row, as `HybridRewardTrainer` computes it."""
    model = build(AutoModelForSequenceClassification, dtype)
    stage = StageConfig(name="all", regression_weight=1.0, preference_weight=1.0, centering_weight=0.1)
    items = [
        Item(Tree((5, 6, 7), ((8, 9), (10, 11, 12))), ((1.0, None), (2.0, 3.0)), strength=2),
        Item(Tree((5, 6), ((4, 7),)), ((None, 1.0),)),
    ]
    trainer: Any = SimpleNamespace(args=SimpleNamespace(device=torch.device(DEVICE)), stage=stage)
    place(model)
    for batch in batches(items, 100, pad_id=3):
        with autocast(model.get_base_model()):
            loss, _ = HybridRewardTrainer._row_loss(trainer, model, batch, {"ratings": 4.0, "pairs": 1.0})
        loss.backward()  # type: ignore[no-untyped-call]
    return model


def policy_row(dtype: str, *, left_behind: bool = False) -> PeftModel:
    """Both passes, KL, advantages, importance weights, loss and backward of a packed row, and a critic's
    pass."""
    model = build(AutoModelForCausalLM, dtype)
    head = nn.Linear(SIZES["hidden_size"], 1, bias=False, device="meta")
    enable_packed_values(model.get_base_model(), head)
    place(model)
    group = [Rollout((5, 6, 7), (8, 9, number), (-1.0, -2.0, -0.5), True, "") for number in range(10, 13)]
    (row,) = pack_groups([group], 100, 3, "cpu" if left_behind else DEVICE)
    algorithm = Reinforce.of(AlgorithmConfig())
    update = Update(
        algorithm,
        KLConfig(placement="loss", estimator="k2"),
        0.1,
        ImportanceConfig(),
        len(group),
        3.0,
        3.0,
        UpdateStatistics([1.0, 0.5, 0.0], group),
        EngineProbe("token", 2.0),
        lambda values: values,
    )
    with autocast(model.get_base_model()):
        logps_M, entropy_M, answer_M = token_logps(model, row.packed)
        reference_M = reference_logps(model, model, row)
    rewards_N = torch.tensor([1.0, 0.5, 0.0], device=DEVICE)
    measured = update.measure(row, rewards_N, logps_M.detach(), reference_M, entropy_M, answer_M)
    update.compute_advantages([measured])
    update.policy_loss(0, row, logps_M).backward()  # type: ignore[no-untyped-call]
    with autocast(model.get_base_model()):
        token_values(model, row.packed).sum().backward()  # type: ignore[no-untyped-call]
    return model


CASES = {
    "reward-float32": lambda: reward_row("float32"),
    "reward-bfloat16": lambda: reward_row("bfloat16"),
    "policy-float32": lambda: policy_row("float32"),
    "policy-bfloat16": lambda: policy_row("bfloat16"),
    "left-behind": lambda: policy_row("float32", left_behind=True),
}


def main() -> None:
    library = register_device()
    for name in sys.argv[1:]:
        with FakeTensorMode(allow_non_fake_inputs=True):
            try:
                model = CASES[name]()
            except RuntimeError as error:
                print(f"{name}: {str(error).splitlines()[0]}")
                continue
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            places = {
                str(parameter.grad.device) if parameter.grad is not None else "none" for parameter in trained
            }
            print(f"{name}: {' '.join(sorted(places))}")
    del library


if __name__ == "__main__":
    main()
