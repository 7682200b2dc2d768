"""Bytes of live tensors by kind, and FLOPs, of real code that runs on fake tensors.

Every operation passes through a dispatch mode. A storage is added when it is first seen and subtracted when
it is
freed: *allocated* memory in the terms of a caching allocator, without rounding and fragmentation.
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
"""The default kind: tensors saved for the backward pass, and temporaries."""

Moment = tuple[str, int]
"""Pass and layer: 0, 1 … from the first, -1, -2 … from the last."""


@dataclass(frozen=True)
class Peak:
    """The largest number of bytes at one moment, by kind."""

    total: int
    kinds: Mapping[str, int]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that counts every tensor that operations create.

    Attributes:
        moment: the current pass and layer, set by hooks of the traced model.
        peaks: the largest number of bytes within each moment.
        flops: floating-point operations of matrix products and attention in each pass.
    """

    def __init__(self, *, on_gpu: bool, logprob_tokens: int) -> None:
        """Count for the kernels of a GPU or a CPU; a boolean index selects `logprob_tokens` elements."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_gpu, self.logprob_tokens = on_gpu, logprob_tokens
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
        """Change the kind of a counted tensor."""
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
        """Record the current bytes, plus `hidden` bytes of a workspace, if they are a new peak."""
        total = self._total + hidden
        best = self.peaks.get(self.moment)
        if best is None or total > best.total:
            kinds = {kind: size for kind, size in self._bytes.items() if size}
            if hidden:
                kinds[ACTIVATIONS] = kinds.get(ACTIVATIONS, 0) + hidden
            self.peaks[self.moment] = Peak(total, kinds)

    def _places(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Boolean indices as integer ones: their number of elements is the only data that a trace needs."""
        integers: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                integers += [
                    index.new_empty(self.logprob_tokens, dtype=torch.long) for _ in range(index.dim())
                ]
            else:
                integers.append(index)
        return integers


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001  # the address; torch has no public name for it


def _of_shapes(count: Callable[..., int], tensors: int) -> Callable[..., int]:
    """A FLOP formula applied to the shapes of an operation's first `tensors` arguments."""
    return lambda *args, **_: count(*(tensor.shape for tensor in args[:tensors]))


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001

FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],  # adapters are summed in place
    ATTENTION: _of_shapes(sdpa_flop_count, 3),
    ATTENTION_BACKWARD: _of_shapes(sdpa_backward_flop_count, 4),
}
"""Operation: its FLOP formula, torch's and those of attention on a CPU; `add_four_bits` adds 4-bit
products."""


def _gemm_4bit_hidden(args: tuple[Any, ...], *, on_gpu: bool) -> int:
    """Bytes of the 16-bit weight and its float32 scales, into which a 4-bit product dequantizes.

    On GPUs only with more than 1,536 tokens; fewer go to a fused kernel. Source: bitsandbytes 0.50
    `backends/cuda/ops.py`, `backends/default/ops.py`.
    """
    a, shape, blocksize = args[0], args[2], args[4]
    weights = shape[0] * shape[1]
    if on_gpu and a.numel() // a.shape[-1] <= 1536:
        return 0
    return int(weights * a.dtype.itemsize + weights // blocksize * 4)


def _attention_backward_hidden(args: tuple[Any, ...], *, on_gpu: bool) -> int:
    """Bytes of the float32 accumulator for the queries' gradient in memory-efficient attention, and of
    `delta`.

    Source: PyTorch's `mem_eff_attention/kernel_backward.h` (`kNeedsAccumGradQ`),
    `attention_backward.cu` (`delta`).
    """
    query = args[1]
    return 4 * (query.numel() + query.numel() // query.shape[-1]) if on_gpu else 0


HIDDEN: dict[Any, Callable[..., int]] = {
    ATTENTION_BACKWARD: _attention_backward_hidden,
}
"""Operation: bytes of its workspace, beside arguments and result."""


def add_four_bits() -> None:
    """Register bitsandbytes' operations; it must be imported."""
    packet = torch.ops.bitsandbytes.gemm_4bit
    FLOPS[packet] = lambda a, _, shape, *__, **___: 2 * a.numel() * shape[0]
    HIDDEN[packet] = _gemm_4bit_hidden
