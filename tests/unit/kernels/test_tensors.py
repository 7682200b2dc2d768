from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.kernels.tensors import segment_mean, segment_sum

VALUES = torch.tensor([1.0, 2.0, 4.0, -3.0])
ANSWER = torch.tensor([0, 0, 2, 0])


def test_hand_computed_segments() -> None:
    assert segment_sum(VALUES, ANSWER, 3).tolist() == [0.0, 0.0, 4.0]
    assert segment_mean(VALUES, ANSWER, 3).tolist() == [0.0, 0.0, 4.0]  # (1 + 2 - 3) / 3, none, 4 / 1
    assert segment_mean(VALUES[:2], ANSWER[:2], 1).tolist() == [1.5]


@pytest.mark.parametrize("reduce", [segment_sum, segment_mean])
def test_gradient(reduce: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    values = VALUES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: reduce(v, ANSWER, 3), (values,))


@pytest.mark.parametrize("reduce", [segment_sum, segment_mean])
def test_broadcasting_is_refused(reduce: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"got \(4,\) and \(3,\)"):
        reduce(VALUES, ANSWER[:3], 3)
