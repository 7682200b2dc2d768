"""Peak memory by kind, and FLOPs, of the real update, traced on fake tensors.

A deep model is traced with three and with four layers and extrapolated to its depth. All layers but the last
are equal, so memory at a given layer of a pass is linear in their number; the peak is the maximum over these
lines.

Shapes: T tokens of a row, N sequences in it, M tokens whose log-probability is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_

from rlhf.plan.memory.empty import tensors_of, without_data
from rlhf.plan.memory.ledger import Ledger, Moment, Peak, add_four_bits
from rlhf.plan.memory.passes import PASSES, UpdateRow, build, packed_row

WEIGHTS, ADAPTERS, GRADIENTS, OPTIMIZER = "weights", "adapters", "gradients", "optimizer"
SHALLOW, DEEPER = 3, 4
"""Numbers of layers a deep model is traced with."""
FRONT, BACK = 1, 2
"""Layers at either end whose peaks are kept apart; the last layer computes less than the others."""


@dataclass(frozen=True)
class Trace:
    """Memory and FLOPs of one row, by pass."""

    peaks: Mapping[str, Peak]
    """Pass (`update`, `critic`, `optimizer`, `scoring`, `measuring`): its peak."""
    flops: Mapping[str, int]
    """Pass: matrix products and attention of one row."""
    layer_bytes: int
    """Bytes of the frozen weights of one layer."""
    outer_bytes: int
    """Bytes of the frozen weights of the embedding or the head, whichever is larger."""
    scale_bytes: int
    """Bytes of the scales of 4-bit weights, which are not sharded."""


def trace(shape: Any, row: UpdateRow, *, on_gpu: bool = True, whole: bool = False) -> Trace:
    """Trace a row through a model of this shape.

    Args:
        shape: a transformers config.
        on_gpu: count the workspace of CUDA kernels; else that of our attention and of CPU kernels.
        whole: trace every layer instead of extrapolating.
    """
    layers = shape.num_hidden_layers
    if whole or layers <= DEEPER:
        return _condense(_run(shape, row, on_gpu))
    shallow, deeper = (_run(_with_layers(shape, n), row, on_gpu) for n in (SHALLOW, DEEPER))
    return _condense(_extrapolated(shallow, deeper, layers))


@dataclass(frozen=True)
class _Raw:
    peaks: Mapping[Moment, Peak]
    flops: Mapping[str, int]
    layer_bytes: int
    outer_bytes: int
    scale_bytes: int


def _extrapolated(shallow: _Raw, deeper: _Raw, layers: int) -> _Raw:
    """f(L) = f(3) + (L - 3) (f(4) - f(3)), for every kind at every moment."""
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


def _run(shape: Any, row: UpdateRow, on_gpu: bool) -> _Raw:
    """Build the model and run every pass once.

    Gradients and AdamW's moments exist from the start: the peak of any row but the first of the first update.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    ledger = Ledger(on_gpu=on_gpu, logprob_tokens=row.logprob_tokens)
    if row.quantization == "nf4":
        add_four_bits()
    model, head = build(shape, row)
    for part in (model, head):
        without_data(part, mode)
    body: Any = model.get_base_model().base_model
    _place_hooks(ledger, body.layers)
    with mode, ledger:
        for name, tensor in (*tensors_of(model).items(), *tensors_of(head).items()):
            ledger.count(tensor, WEIGHTS if _is_weight(name, tensor) else ADAPTERS)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _optimizer(trained, ledger)
        batch = packed_row(row, on_gpu=on_gpu)
        PASSES[row.command](model, head, batch, row, ledger)
        with ledger.during("optimizer"):
            clip_grad_norm_(trained, 1.0)
            optimizer.step()
    outer = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part]
    return _Raw(
        ledger.peaks,
        ledger.flops,
        layer_bytes=_weight_bytes(body.layers[0]),
        outer_bytes=max(_weight_bytes(part) for part in outer),
        scale_bytes=_weight_bytes(model, only=".scale."),
    )


def _place_hooks(ledger: Ledger, layers: nn.ModuleList) -> None:
    """Register hooks that set the ledger's moment to the current layer, forwards and backwards."""
    depth = len(layers)

    def at(index: int) -> Callable[..., None]:
        place = index if index < FRONT else index - depth if index >= depth - BACK else depth

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
    """AdamW with its moments, and gradients as an earlier row left them."""
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


def _is_weight(name: str, tensor: Tensor) -> bool:
    return not tensor.requires_grad and ".lora_" not in name


def _weight_bytes(model: nn.Module, only: str = "") -> int:
    return sum(
        tensor.untyped_storage().nbytes()
        for name, tensor in tensors_of(model).items()
        if _is_weight(name, tensor) and only in name
    )
