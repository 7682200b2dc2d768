"""The real update, run on tensors without data: what it holds at its peak, by kind, and what it computes.

The models are our own, with adapters, packed rows and losses as in a run; attention and checkpointing are the vendors'. A
deep model is traced at four and at five layers and carried on to its depth: its layers are alike, so every level of
memory is a linear function of their number at the same place of the same pass, and the peak is the highest of these lines.

Shapes: T tokens of a row, N sequences in it, M tokens whose log-probability is asked for.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_

from policy.kl import kl_of_answers
from policy.losses import reinforce
from policy.rows import token_logps
from reward.losses import bradley_terry, regression
from rlhf.core.models import (
    REWARD,
    PeftModel,
    apply_head,
    autocast,
    enable_packed_logprobs,
    enable_packed_scores,
    float32_trainable,
    lora_config,
    packed_inputs,
    role,
    with_adapter,
)
from rlhf.core.packing import PackedBatch
from rlhf.plan.empty import empty_base, tensors_of, without_data
from rlhf.plan.ledger import Ledger, Moment, Peak, add_four_bits

WEIGHTS, ADAPTERS, GRADIENTS, OPTIMIZER = "weights", "adapters", "gradients", "optimizer"
SHALLOW, DEEPER = 2, 3
"""Numbers of layers a deep model is traced with."""
EDGE = 1
"""Layers at either end whose levels are kept apart; those between lie between."""


@dataclass(frozen=True)
class Row:
    """One packed row of an update, and the model it goes through."""

    command: Literal["train-reward", "align-policy"]
    tokens: int
    sequences: int
    """Responses of pairs, or answers."""
    asked: int
    """Tokens whose log-probability is asked for; the policy's only."""
    dtype: str
    quantization: str
    checkpointing: bool
    rank: int
    dropout: float
    targets: str | tuple[str, ...]
    outputs: int
    """Attributes of the reward head."""
    reward_rank: int = 0
    """Rank of the reward model's adapter on the policy's base."""


@dataclass(frozen=True)
class Trace:
    """What a row holds and computes, pass by pass."""

    peaks: Mapping[str, Peak]
    """Pass (`update`, `scoring`, `reference`): its peak."""
    flops: Mapping[str, int]
    """Pass: matrix products and attention of one row."""
    layer_bytes: int
    """Frozen weights of one layer."""
    outer_bytes: int
    """Frozen weights outside the layers: embedding and head."""
    scale_bytes: int
    """Scales of 4-bit weights, which sharding leaves whole."""


def trace(shape: Any, row: Row, *, on_gpu: bool = True, whole: bool = False) -> Trace:
    """Trace a row through a model of this shape.

    Args:
        shape: a transformers config.
        on_gpu: count what CUDA kernels hold inside themselves; else what CPU kernels do.
        whole: run every layer, whatever the depth.
    """
    layers = shape.num_hidden_layers
    if whole or layers <= DEEPER:
        return _condense(_run(shape, row, on_gpu))
    shallow, deeper = (_run(_with_layers(shape, n), row, on_gpu) for n in (SHALLOW, DEEPER))
    return _condense(_carried_on(shallow, deeper, layers))


@dataclass(frozen=True)
class _Raw:
    peaks: Mapping[Moment, Peak]
    flops: Mapping[str, int]
    layer_bytes: int
    outer_bytes: int
    scale_bytes: int


def _carried_on(shallow: _Raw, deeper: _Raw, layers: int) -> _Raw:
    """f(L) = f(4) + (L - 4) (f(5) - f(4)), for every kind at every moment."""
    steps = layers - SHALLOW

    def line(a: int, b: int) -> int:
        return a + steps * (b - a)

    peaks = {}
    for moment in shallow.peaks.keys() & deeper.peaks.keys():
        a, b = shallow.peaks[moment], deeper.peaks[moment]
        kinds = {
            kind: line(a.kinds.get(kind, 0), b.kinds.get(kind, 0)) for kind in a.kinds.keys() | b.kinds.keys()
        }
        peaks[moment] = Peak(line(a.total, b.total), kinds)
    flops = {name: line(shallow.flops[name], deeper.flops[name]) for name in shallow.flops}
    scales = line(shallow.scale_bytes, deeper.scale_bytes)
    return replace(deeper, peaks=peaks, flops=flops, scale_bytes=scales)


def _condense(raw: _Raw) -> Trace:
    peaks: dict[str, Peak] = {}
    flops: dict[str, int] = {}
    for (name, _), peak in raw.peaks.items():
        name = name.partition(":")[0]
        if name not in peaks or peak.total > peaks[name].total:
            peaks[name] = peak
    for name, count in raw.flops.items():
        name = name.partition(":")[0]
        flops[name] = flops.get(name, 0) + count
    return Trace(peaks, flops, raw.layer_bytes, raw.outer_bytes, raw.scale_bytes)


def _with_layers(shape: Any, layers: int) -> Any:
    shallow = copy.deepcopy(shape)
    shallow.num_hidden_layers = layers
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[:layers]
    return shallow


def _run(shape: Any, row: Row, on_gpu: bool) -> _Raw:
    """Build the model and run every pass once, in the state of an update that is under way.

    Gradients and AdamW's moments are there from the start: the peak of any row but an update's first.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    ledger = Ledger(on_gpu=on_gpu, asked=row.asked)
    if row.quantization == "nf4":
        add_four_bits()
    model, head = _build(shape, row)
    for part in (model, head):
        without_data(part, mode)
    body = _body(model)
    _place_hooks(ledger, body.layers)
    with mode, ledger:
        for name, tensor in (*tensors_of(model).items(), *tensors_of(head).items()):
            ledger.count(tensor, WEIGHTS if _is_weight(name, tensor) else ADAPTERS)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _optimizer(trained, ledger)
        batch = _batch(row)
        _PASSES[row.command](model, head, batch, row, ledger)
        with ledger.during("optimizer"):
            clip_grad_norm_(trained, 1.0)
            optimizer.step()
    layer, total = _weight_bytes(body.layers[0]), _weight_bytes(model)
    return _Raw(
        ledger.peaks,
        ledger.flops,
        layer_bytes=layer,
        outer_bytes=total - layer * len(body.layers),
        scale_bytes=_weight_bytes(model, only=".scale."),
    )


def _build(shape: Any, row: Row) -> tuple[PeftModel, nn.Module]:
    """The model with its adapters as `train-reward` or `align-policy` makes it, and the reward head of the latter."""
    is_reward = row.command == "train-reward"
    targets = row.targets if isinstance(row.targets, str) else list(row.targets)
    names = [str(number) for number in range(row.outputs)]
    base = empty_base(
        copy.deepcopy(shape),
        attributes=names if is_reward else None,
        dtype=row.dtype,
        quantization=row.quantization,
    )
    adapter = functools.partial(lora_config, alpha=1.0, targets=targets)
    with torch.device("meta"):
        if is_reward:
            enable_packed_scores(base)
            model = with_adapter(base, adapter(rank=row.rank, dropout=row.dropout, head=True))
        else:
            model = with_adapter(base, adapter(rank=row.rank, dropout=row.dropout))
            enable_packed_logprobs(model.get_base_model(), 1.0)
            model.add_adapter(REWARD, adapter(rank=row.reward_rank, dropout=0.0))
            for name, parameter in model.named_parameters():
                if f".{REWARD}." in name:
                    parameter.requires_grad_(False)
        head = nn.Linear(shape.hidden_size, row.outputs, bias=False).requires_grad_(False)
    float32_trainable(model)
    if row.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    return model, nn.Identity() if is_reward else head


def _body(model: PeftModel) -> Any:
    base = model.get_base_model()
    return getattr(base, base.base_model_prefix)


def _place_hooks(ledger: Ledger, layers: nn.ModuleList) -> None:
    """Tell the ledger which layer the code is in, forwards and backwards."""
    depth = len(layers)

    def at(index: int) -> Callable[..., None]:
        place = index if index < EDGE else index - depth if index >= depth - EDGE else depth

        def enter(*_: Any) -> None:
            ledger.moment = (ledger.moment[0].partition(":")[0], place)

        return enter

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        ledger.moment = (f"{ledger.moment[0].partition(':')[0]}:after", 0)
        if hidden.requires_grad and hidden.grad_fn is not None:
            hidden.register_hook(entered[module])

    entered = {layer: at(index) for index, layer in enumerate(layers)}
    for layer in layers:
        layer.register_forward_pre_hook(entered[layer])
        layer.register_forward_hook(leave)


def _optimizer(trained: list[nn.Parameter], ledger: Ledger) -> torch.optim.Optimizer:
    """AdamW with its moments, and the gradients of an earlier row."""
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
        ledger.rename(parameter.grad, GRADIENTS)
    with ledger.during("warming up"):
        optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.dim():
                ledger.rename(value, OPTIMIZER)
    ledger.peaks.clear()
    ledger.flops.clear()
    return optimizer


def _batch(row: Row) -> PackedBatch:
    """A row without data."""

    def places() -> Tensor:
        return torch.empty(1, row.tokens, dtype=torch.long)

    return PackedBatch(
        ids_RT=places(),
        positions_RT=places(),
        tree_RT=places(),
        branch_RT=places(),
        trees=(0,),
        useful_tokens=0,
    )


def _reward_passes(model: PeftModel, _: nn.Module, batch: PackedBatch, row: Row, ledger: Ledger) -> None:
    """As `HybridRewardTrainer._row_loss`: scores, both losses, backward; and the same without gradient."""

    def scores() -> Tensor:
        last_N = torch.empty(row.sequences, dtype=torch.long), torch.empty(row.sequences, dtype=torch.long)
        with autocast(model.get_base_model()):
            return model(**packed_inputs(batch), score_at=last_N)  # type: ignore[no-any-return]

    with ledger.during("scoring"), torch.no_grad():
        scores()
    with ledger.during("update"):
        scores_NA = scores()
        half = row.sequences // 2
        chosen_B, rejected_B = scores_NA[:half, 0], scores_NA[half : 2 * half, 0]
        ratings_NA = torch.empty_like(scores_NA)
        loss = regression(scores_NA, ratings_NA, ratings_NA > 0, 1.0)
        loss = loss + bradley_terry(chosen_B, rejected_B, torch.empty(half), "scaled", 1.0)
        with _backwards(ledger):
            loss.backward()  # type: ignore[no-untyped-call]


def _policy_passes(model: PeftModel, head: nn.Module, batch: PackedBatch, row: Row, ledger: Ledger) -> None:
    """As `PolicyTrainer.training_step`: the reward, the reference, then the policy forwards and backwards."""
    base = model.get_base_model()
    with ledger.during("scoring"), torch.no_grad(), role(model, REWARD):
        with autocast(base):
            hidden_RTD = _body(model)(**packed_inputs(batch), use_cache=False).last_hidden_state
        rows_N = torch.empty(row.sequences, dtype=torch.long)
        apply_head(head, hidden_RTD[rows_N, rows_N])
        del hidden_RTD
    with ledger.during("reference"), torch.no_grad(), role(model, None), autocast(base):
        reference_M, _, _ = token_logps(model, batch)
    with ledger.during("update"):
        with autocast(base):
            logps_M, _, answer_M = token_logps(model, batch)
        penalty_N = kl_of_answers(logps_M.detach() - reference_M, answer_M, row.sequences, "k1", "sum")
        loss = reinforce(logps_M, answer_M, penalty_N, "sequence_sum", row.sequences)
        with _backwards(ledger):
            loss.backward()  # type: ignore[no-untyped-call]


_PASSES = {"train-reward": _reward_passes, "align-policy": _policy_passes}


@contextmanager
def _backwards(ledger: Ledger) -> Iterator[None]:
    """Levels of the backward pass are kept apart: a place there is another one than forwards."""
    name = ledger.moment[0].partition(":")[0]
    with ledger.during(f"{name}:backwards"):
        yield


def _is_weight(name: str, tensor: Tensor) -> bool:
    return not tensor.requires_grad and f".{REWARD}." not in name


def _weight_bytes(model: nn.Module, only: str = "") -> int:
    return sum(
        tensor.untyped_storage().nbytes()
        for name, tensor in tensors_of(model).items()
        if _is_weight(name, tensor) and only in name
    )
