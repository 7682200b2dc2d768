"""The trainers' updates on fake tensors of a pretended device: a tensor left on the CPU raises.

`python tests/pretended_device.py CASE ...` prints a JSON object for each case: the devices of all gradients,
and the operations at which the host would wait for the device. It runs in a process of its own, since a
device is registered once and for all. Nothing is computed: numbers are what other tests look at.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations import flex_attention as vendor
from transformers.integrations import replace_with_bnb_linear

from policy.algorithms.ppo import PPO
from policy.algorithms.protocol import Algorithm
from policy.algorithms.reinforce import Reinforce
from policy.dpo.trainer import PackedDPOTrainer
from policy.rollouts.probe import EngineProbe
from policy.update.forward import (
    MicroBatch,
    measuring_passes,
    pack_groups,
    reference_logps,
    token_logps,
    token_values,
)
from policy.update.statistics import UpdateStatistics
from policy.update.step import Update
from reward.justifier.trainer import JustifierTrainer
from reward.principle.trainer import PrincipleTrainer
from reward.training.batches import Item, batches
from reward.training.figures import sum_rows
from reward.training.trainer import HybridRewardTrainer
from rlhf.config.algorithm import AlgorithmConfig, KLConfig
from rlhf.config.reward import StageConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.records import Rollout
from rlhf.kernels import adapter_layers, flex, layers, packing
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.models.forwards import enable_packed_logprobs, enable_packed_scores, enable_packed_values
from rlhf.models.four_bits import nf4_settings, prepare
from rlhf.models.loading import PeftModel, autocast, lora_config, with_adapter
from rlhf.models.names import CRITIC, HEAD
from rlhf.models.roles import role
from rlhf.plan.memory.empty import pack_weight

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


WAITS = {
    "_local_scalar_dense",  # item(), float(), bool()
    "nonzero",
    "masked_select",
    "_unique2",
    "repeat_interleave",
    "equal",
}
"""Operations whose result the host needs: on a GPU it waits for all kernels before them."""


class HostWaits(TorchDispatchMode):
    """Records the operations at which the host would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = [value.device.type for value in args if isinstance(value, Tensor)]
        result = func(*args, **kwargs)
        if name in WAITS and "pretend" in before:
            self.names.append(name)
        if name in ("index", "index_put_", "index_put") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.names.append(f"{name} by a mask")
        if name in ("_to_copy", "copy_") and isinstance(result, Tensor):
            source = before[-1]
            if source == "cpu" != result.device.type and not (kwargs.get("non_blocking") or True in args[2:]):
                self.names.append("copy to the device")
            if source != "cpu" == result.device.type:
                self.names.append("copy from the device")
        return result


def read_as_zeros() -> None:
    """Let a fake tensor on the CPU be read as zeros; what was on the device has been copied, and counted."""

    def number(tensor: Tensor) -> float:
        assert tensor.device.type == "cpu", "a number is read from the device"
        return 0.0

    def numbers(tensor: Tensor) -> Any:
        assert tensor.device.type == "cpu", "numbers are read from the device"
        return [numbers(part) for part in tensor] if tensor.dim() else 0.0

    FakeTensor.__float__ = number  # type: ignore[method-assign, assignment]
    FakeTensor.tolist = numbers  # type: ignore[method-assign, assignment]


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


def build(auto_class: Any, dtype: str, *, quantization: str = "none", critic: bool = False) -> PeftModel:
    """A model with an adapter, and a critic's, on no device yet."""
    config = AutoConfig.for_model("llama", **SIZES, num_labels=2)
    with unset_fake_temporarily(), torch.device("meta"):  # bitsandbytes cannot build in a FakeTensorMode
        base = auto_class.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        layers.enable(base)
        is_reward = auto_class is AutoModelForSequenceClassification
        if quantization == "nf4":
            replace_with_bnb_linear(base, ["lm_head", HEAD], nf4_settings(getattr(torch, dtype), []))
            base.is_loaded_in_4bit = True
            prepare(base, getattr(torch, dtype))
        base.requires_grad_(False)
        settings = lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear", head=is_reward)
        if is_reward:
            enable_packed_scores(base)
        model = with_adapter(base, settings)
        if critic:
            model.add_adapter(CRITIC, settings)
            adapter_layers.enable(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad or f".{CRITIC}." in name)
    if not is_reward:
        enable_packed_logprobs(base, 1.0)
    return model


def place(model: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor on the pretended device."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        return made.setdefault(id(tensor), torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE))

    for module in model.modules():
        if isinstance(module, Linear4bit):
            with torch.device(DEVICE):
                pack_weight(module)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                setattr(module, name, nn.Parameter(fake(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake(buffer))


def reward_row(dtype: str, quantization: str = "none") -> PeftModel:
    """Forward, every loss term and backward of packed rows, as `HybridRewardTrainer` does; figures."""
    model = build(AutoModelForSequenceClassification, dtype, quantization=quantization)
    stage = StageConfig(name="all", regression_weight=1.0, preference_weight=1.0, centering_weight=0.1)
    items = [
        Item(Tree((5, 6, 7), ((8, 9), (10, 11, 12))), ((1.0, None), (2.0, 3.0)), strength=2),
        Item(Tree((5, 6), ((4, 7),)), ((None, 1.0),)),
    ]
    trainer: Any = SimpleNamespace(args=SimpleNamespace(device=torch.device(DEVICE)), stage=stage)
    place(model)
    rows = []
    for batch in batches(items, 1, pad_id=3):
        with autocast(model.get_base_model()):
            loss, figures = HybridRewardTrainer._row_loss(
                trainer, model, batch, {"ratings": 4.0, "pairs": 1.0}
            )
        loss.backward()  # type: ignore[no-untyped-call]
        rows.append(figures)
    assert len(rows) == 2
    sum_rows(rows)
    return model


ANSWERS = [
    [Rollout((5, 6, 7), (8, 9, number), (-1.0, -2.0, -0.5), True, "") for number in numbers]
    for numbers in (range(10, 13), range(13, 16))
]
"""Two groups, each a micro-batch of its own."""


def new_update(algorithm: Algorithm, kl: KLConfig) -> Update:
    """An update of `ANSWERS`."""
    flat = [rollout for group in ANSWERS for rollout in group]
    return Update(
        algorithm,
        kl,
        0.1,
        ImportanceConfig(),
        len(ANSWERS[0]),
        6.0,
        6.0,
        UpdateStatistics([1.0, 0.5, 0.0] * 2, flat),
        EngineProbe("token", 2.0),
        lambda values: values,
    )


def finish(update: Update) -> None:
    """Read the statistics of an update."""
    update.figures()
    update.statistics.read()
    update.probe.read()


def micro_batches(device: str) -> list[MicroBatch]:
    """The micro-batches of `ANSWERS`."""
    rows = pack_groups(ANSWERS, 1, 3, device)
    assert len(rows) == len(ANSWERS)
    return rows


def policy_row(dtype: str, quantization: str = "none", *, left_behind: bool = False) -> PeftModel:
    """An update without a critic, as `UpdateEpochs._measuring_epoch`: both passes, KL, advantages, importance
    weights, loss and backward of two rows; and the statistics."""
    model = build(AutoModelForCausalLM, dtype, quantization=quantization)
    place(model)
    update = new_update(Reinforce.of(AlgorithmConfig()), KLConfig(placement="loss", estimator="k2"))
    rewards_N = torch.tensor([1.0, 0.5, 0.0] * 2)
    for index, row in enumerate(micro_batches("cpu" if left_behind else DEVICE)):
        with autocast(model.get_base_model()):
            logps_M, entropy_M, answer_M = token_logps(model, row.packed)
            reference_M = reference_logps(model, model, row)
        measured = update.measure(
            row, rewards_N[row.answers], logps_M.detach(), reference_M, entropy_M, answer_M
        )
        update.compute_advantages([measured])
        update.policy_loss(index, row, logps_M).backward()  # type: ignore[no-untyped-call]
    finish(update)
    return model


def ppo_row(dtype: str, quantization: str = "none", *, mistake: Callable[[Tensor], object] = id) -> PeftModel:
    """An update with a critic, as `UpdateEpochs`: measuring passes, advantages over all rows, both losses and
    backward passes; and the statistics.

    Args:
        mistake: called with the log-probabilities of each row.
    """
    model = build(AutoModelForCausalLM, dtype, quantization=quantization, critic=True)
    head = nn.Linear(SIZES["hidden_size"], 1, bias=False, device="meta")
    enable_packed_values(model.get_base_model(), head)
    place(model)
    update = new_update(
        PPO.of(AlgorithmConfig.model_validate({"name": "ppo"})),
        KLConfig(placement="reward", estimator="k1"),
    )
    base, rewards_N = model.get_base_model(), torch.tensor([1.0, 0.5, 0.0] * 2)
    rows, measured = micro_batches(DEVICE), []
    for row in rows:
        with autocast(base):
            passes = measuring_passes(model, model, row)
        measured.append(update.measure(row, rewards_N[row.answers], *passes))
    update.compute_advantages(measured)
    for index, row in enumerate(rows):
        with autocast(base):
            logps_M, _, _ = token_logps(model, row.packed)
        mistake(logps_M)
        update.policy_loss(index, row, logps_M).backward()  # type: ignore[no-untyped-call]
        with role(model, CRITIC):
            with autocast(base):
                values_M = token_values(model, row.packed)
            update.value_loss(index, values_M).backward()  # type: ignore[no-untyped-call]
    finish(update)
    return model


def principle_row(dtype: str) -> PeftModel:
    """As `reward_row`, with the loss of a principle model."""
    model = build(AutoModelForSequenceClassification, dtype)
    items = [
        Item(Tree((5, 6, 7), ((8, 9), (10, 11, 12))), ((1.0,), (0.0,))),
        Item(Tree((5,), ((4,),)), ((1.0,),)),
    ]
    trainer: Any = SimpleNamespace(args=SimpleNamespace(device=torch.device(DEVICE)))
    place(model)
    rows = []
    for batch in batches(items, 1, pad_id=3):
        with autocast(model.get_base_model()):
            loss, figures = PrincipleTrainer._row_loss(trainer, model, batch, {"ratings": 3.0})
        loss.backward()  # type: ignore[no-untyped-call]
        rows.append(figures)
    assert len(rows) == 2
    sum_rows(rows)
    return model


def dpo_row(dtype: str) -> PeftModel:
    """Both passes, loss and backward of two rows of pairs, as `PackedDPOTrainer`; figures."""
    model = build(AutoModelForCausalLM, dtype)
    place(model)
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cpu")),  # where the sums are reduced
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped, reduce=lambda sums, **_: sums),
        model=model,
        beta=0.1,
        kind="scaled",
    )
    trainer._rewards = functools.partial(PackedDPOTrainer._rewards, trainer)
    pairs: Any = [SimpleNamespace(strength=2), SimpleNamespace(strength=1)]
    rows = []
    for row in pack_groups([group[:2] for group in ANSWERS], 1, 3, DEVICE):
        with autocast(model.get_base_model()):
            loss, sums = PackedDPOTrainer._row_loss(trainer, model, row, pairs, 2.0)
        loss.backward()  # type: ignore[no-untyped-call]
        rows.append(sums)
    assert len(rows) == 2
    PackedDPOTrainer._means(trainer, rows, 2.0)
    return model


def justifier_row(dtype: str) -> PeftModel:
    """Forward and backward of two micro-batches, as `JustifierTrainer`."""
    model = build(AutoModelForCausalLM, dtype)
    place(model)
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(device=torch.device(DEVICE)), accelerator=SimpleNamespace(num_processes=1)
    )
    for trees in ([Tree((5, 6), ((7, 8, 9),))], [Tree((5,), ((6, 7),)), Tree((8,), ((9, 4),))]):
        (packed,) = pack(trees, 10_000, pad_id=3)
        with autocast(model.get_base_model()):
            loss = JustifierTrainer.compute_loss(trainer, model, {"packed": packed}, num_items_in_batch=4)
        loss.backward()
    return model


def flex_row() -> PeftModel:
    """As `policy_row` with FlexAttention's masks; its kernel is replaced by a sum."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:
        return query + (key.sum() + value.sum()), SimpleNamespace(lse=query[..., 0])

    masks: list[flex.FlexMasks] = []
    make = flex.FlexMasks.__init__

    def counted(self: flex.FlexMasks, batch: PackedBatch) -> None:
        masks.append(self)
        make(self, batch)

    replaced: list[tuple[Any, str, Any]] = [
        (flex, "is_usable", lambda device: True),
        (flex, "SMALLEST_HEAD", 1),
        (flex.FlexMasks, "__init__", counted),
        (packing, "CPU_GRAIN", packing.GPU_GRAIN),
        (vendor, "WrappedFlexAttention", lambda training: lambda: kernel),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        model = policy_row("float32")
    assert len(masks) == len(ANSWERS)  # one a row, for both passes and every layer
    return model


CASES: dict[str, Callable[[], PeftModel]] = {
    "principle-bfloat16": lambda: principle_row("bfloat16"),
    "dpo-bfloat16": lambda: dpo_row("bfloat16"),
    "justifier-bfloat16": lambda: justifier_row("bfloat16"),
    "flex-float32": flex_row,
    "reward-float32": lambda: reward_row("float32"),
    "reward-bfloat16": lambda: reward_row("bfloat16"),
    "reward-nf4": lambda: reward_row("bfloat16", "nf4"),
    "policy-float32": lambda: policy_row("float32"),
    "policy-bfloat16": lambda: policy_row("bfloat16"),
    "policy-nf4": lambda: policy_row("bfloat16", "nf4"),
    "ppo-float32": lambda: ppo_row("float32"),
    "ppo-bfloat16": lambda: ppo_row("bfloat16"),
    "ppo-nf4": lambda: ppo_row("bfloat16", "nf4"),
    "left-behind": lambda: policy_row("float32", left_behind=True),
    "indexed-by-a-mask": lambda: ppo_row("float32", mistake=lambda logps_M: logps_M[logps_M > 0]),
    "copied": lambda: ppo_row("float32", mistake=lambda logps_M: torch.ones(1).to(logps_M.device)),
    "read": lambda: ppo_row("float32", mistake=lambda logps_M: logps_M.detach().cpu()),
}


def examine(name: str) -> dict[str, Any]:
    """The devices of all gradients and the host's waits in a case; or the first line of its error."""
    waits = HostWaits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        try:
            model = CASES[name]()
        except RuntimeError as error:
            return {"case": name, "error": str(error).splitlines()[0]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {str(parameter.grad.device) if parameter.grad is not None else "none" for parameter in trained}
    return {"case": name, "devices": sorted(devices), "waits": waits.names}


def main() -> None:
    library = register_device()
    read_as_zeros()
    for name in sys.argv[1:]:
        print(json.dumps(examine(name)))
    del library


if __name__ == "__main__":
    main()
