"""The learning rate's factor: above 0 from the first update on, and transformers' own decay afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from rlhf.training.schedule import learning_rate_factor


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_warm_up_is_transformers_one_update_earlier_and_the_decay_is_theirs(
    schedule: str, warmup: int
) -> None:
    total = 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected = []
    for _ in range(total + 1):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = [learning_rate_factor(step, schedule, warmup, total) for step in range(total + 1)]
    assert ours[:warmup] == pytest.approx(expected[1 : warmup + 1])
    assert ours[warmup:] == pytest.approx(expected[warmup:])
    assert min(ours[:total]) > 0
