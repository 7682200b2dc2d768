from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rlhf.plan.memory.ledger import ACTIVATIONS, Ledger

FLOAT = 4


def test_a_peak_is_what_is_alive_at_once() -> None:
    ledger = Ledger(on_gpu=False, logprob_tokens=0)
    with FakeTensorMode(), ledger, ledger.during("work"):
        a = torch.empty(100)
        b = a + 1  # 200 floats are alive
        del a
        c = b * 2  # 200 again: `a` is gone
        d = c.view(10, 10)  # the same storage
        e = d @ d  # 300 floats are alive: the peak
        del b, c, d, e
        torch.empty(250)
    assert ledger.peaks["work", 0].total == 300 * FLOAT
    assert ledger.peaks["work", 0].kinds == {ACTIVATIONS: 300 * FLOAT}
    assert ledger.flops == {"work": 2 * 10 * 10 * 10}


def test_kinds_follow_their_names() -> None:
    ledger = Ledger(on_gpu=False, logprob_tokens=0)
    with FakeTensorMode(), ledger:
        weight = torch.empty(50)
        ledger.rename(weight, "weights")
        with ledger.during("work"):
            weight * 2
        del weight
        with ledger.during("later"):
            torch.empty(10)
    assert ledger.peaks["work", 0].kinds == {"weights": 50 * FLOAT, ACTIVATIONS: 50 * FLOAT}
    assert ledger.peaks["later", 0].kinds == {ACTIVATIONS: 10 * FLOAT}


def test_a_boolean_index_selects_the_configured_number_of_elements() -> None:
    ledger = Ledger(on_gpu=False, logprob_tokens=7)
    with FakeTensorMode(), ledger:
        values, mask = torch.empty(20, 3), torch.empty(20, dtype=torch.bool)
        assert values[mask].shape == (7, 3)


def test_attention_backwards_sums_in_float32_on_gpus() -> None:
    def peak(on_gpu: bool) -> int:
        ledger = Ledger(on_gpu=on_gpu, logprob_tokens=0)
        with FakeTensorMode(), ledger:
            q = torch.empty(1, 2, 64, 16, dtype=torch.bfloat16, requires_grad=True)
            mask = torch.empty(1, 1, 64, 64, dtype=torch.bool)
            out = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).sum()
            with ledger.during("backwards"):
                out.backward()
        return ledger.peaks["backwards", 0].total

    queries = 2 * 64 * 16
    assert peak(on_gpu=True) - peak(on_gpu=False) == FLOAT * (queries + 2 * 64)
