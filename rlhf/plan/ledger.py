"""Counts the bytes that live tensors hold, by kind, while real code runs on tensors without data; and its FLOPs.

Every operation passes through a dispatch mode. A storage is counted once, when it is first seen, and taken off when
nothing refers to it any more: what a caching allocator would call *allocated* memory, without rounding and fragments.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ACTIVATIONS = "activations"
"""The kind of whatever nothing else claims: what the backward pass needs, and temporaries."""

Moment = tuple[str, int]
"""A pass, and the layer it is in: 0, 1 … from the front, -1, -2 … from the back."""


@dataclass(frozen=True)
class Peak:
    """The most bytes at one moment, by kind."""

    total: int
    kinds: Mapping[str, int]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every tensor that operations make is counted.

    Attributes:
        moment: where the code is; set by the hooks of the traced model.
        peaks: the highest level within each moment.
        flops: floating-point operations of matrix products and attention in each pass.
    """

    def __init__(self, *, on_gpu: bool, asked: int) -> None:
        """Count for a GPU's kernels or for a CPU's; `asked` is how many places every boolean index selects."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_gpu, self.asked = on_gpu, asked
        self.moment: Moment = ("before", 0)
        self.peaks: dict[Moment, Peak] = {}
        self.flops: Counter[str] = Counter()
        self._bytes: dict[str, int] = defaultdict(int)
        self._total = 0
        self._live: dict[int, tuple[int, str, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], self._places(args[1]), *args[2:])
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in FLOPS:
            self.flops[self.moment[0]] += FLOPS[packet](*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf, ACTIVATIONS)
        hidden = HIDDEN.get(packet)
        if hidden is not None:
            self._note(hidden(args, on_gpu=self.on_gpu))
        return out

    def count(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = _key(storage)
        if key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = size, kind, weakref.ref(storage, lambda _: self._forget(key))
        self._bytes[kind] += size
        self._total += size
        self._note()

    def rename(self, tensor: Tensor, kind: str) -> None:
        """Say what a tensor that is counted already is."""
        key = _key(tensor.untyped_storage())
        size, before, reference = self._live[key]
        self._live[key] = size, kind, reference
        self._bytes[before] -= size
        self._bytes[kind] += size

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Within the block the pass is `name`."""
        before, self.moment = self.moment, (name, 0)
        self._note()
        yield
        self.moment = before

    def _forget(self, key: int) -> None:
        size, kind, _ = self._live.pop(key)
        self._bytes[kind] -= size
        self._total -= size

    def _note(self, hidden: int = 0) -> None:
        """Keep the level, and `hidden` bytes that an operation held inside itself, if it is the highest yet."""
        total = self._total + hidden
        best = self.peaks.get(self.moment)
        if best is None or total > best.total:
            kinds = {kind: size for kind, size in self._bytes.items() if size}
            if hidden:
                kinds[ACTIVATIONS] = kinds.get(ACTIVATIONS, 0) + hidden
            self.peaks[self.moment] = Peak(total, kinds)

    def _places(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Boolean indices as integer ones: how many places are true is the only data a trace has to be told."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                found += [index.new_empty(self.asked, dtype=torch.long) for _ in range(index.dim())]
            else:
                found.append(index)
        return found


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001  # the address; torch has no public name for it


def _of_shapes(count: Callable[..., int], tensors: int) -> Callable[..., int]:
    """A formula on the shapes of the first few arguments of an operation."""
    return lambda *args, **_: count(*(tensor.shape for tensor in args[:tensors]))


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001

FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],  # adapters are summed in place
    ATTENTION: _of_shapes(sdpa_flop_count, 3),
    ATTENTION_BACKWARD: _of_shapes(sdpa_backward_flop_count, 4),
}
"""Operation: its FLOPs. torch's own formulas, and those of the CPU's attention; 4-bit products are added where they exist."""


def _gemm_4bit_hidden(args: tuple[Any, ...], *, on_gpu: bool) -> int:
    """The weight in 16 bits (and its scales in 32), which a 4-bit product makes for itself.

    On GPUs rows of more than 1,536 tokens take this way, shorter ones a fused kernel. Source: bitsandbytes 0.50
    `backends/cuda/ops.py`, `backends/default/ops.py`.
    """
    a, shape, blocksize = args[0], args[2], args[4]
    weights = shape[0] * shape[1]
    if on_gpu and a.numel() // a.shape[-1] <= 1536:
        return 0
    return int(weights * a.dtype.itemsize + weights // blocksize * 4)


def _attention_backward_hidden(args: tuple[Any, ...], *, on_gpu: bool) -> int:
    """Memory-efficient attention sums the gradient of the queries in float32, beside one value a query and head.

    Source: PyTorch's `mem_eff_attention/kernel_backward.h` (`kNeedsAccumGradQ`), `attention_backward.cu` (`delta`).
    """
    query = args[1]
    return 4 * (query.numel() + query.numel() // query.shape[-1]) if on_gpu else 0


HIDDEN: dict[Any, Callable[..., int]] = {
    ATTENTION_BACKWARD: _attention_backward_hidden,
}
"""Operation: bytes it holds inside itself while it runs, beside arguments and result."""


def add_four_bits() -> None:
    """Learn of bitsandbytes' operations, once it is imported."""
    packet = torch.ops.bitsandbytes.gemm_4bit
    FLOPS[packet] = lambda a, _, shape, *__, **___: 2 * a.numel() * shape[0]
    HIDDEN[packet] = _gemm_4bit_hidden
