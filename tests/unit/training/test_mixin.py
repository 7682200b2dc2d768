"""The overrides of transformers' Trainer that need no training."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.training import mixin
from rlhf.training.mixin import TrainerMixin


@pytest.mark.parametrize(
    ("fsdp", "local"),
    [
        (False, [True, True, False]),
        (True, [False, False, False]),  # or every process would hold the gradients of all shards
    ],
)
def test_passes_whose_gradients_stay_local(
    fsdp: bool, local: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixin, "is_fsdp", lambda _: fsdp)
    trainer: Any = TrainerMixin.__new__(TrainerMixin)
    entered = []

    @contextmanager
    def no_sync(_: object) -> Any:
        entered.append(True)
        yield

    trainer.accelerator = SimpleNamespace(no_sync=no_sync)
    seen = []
    for last in (False, False, True):
        context: AbstractContextManager[Any] = trainer.accumulate(None, last=last)
        entered.clear()
        with context:
            seen.append(bool(entered))
    assert seen == local


def test_an_update_is_recorded_and_passed_to_callbacks() -> None:
    trainer: Any = TrainerMixin.__new__(TrainerMixin)
    recorded, passed = [], []
    trainer.figures, trainer.step_offset, trainer.args, trainer.control = {"loss/total": 0.5}, 3, None, None
    trainer.record = lambda step, figures: recorded.append((step, figures))
    trainer.state = SimpleNamespace(global_step=2)
    trainer.callback_handler = SimpleNamespace(on_log=lambda *values: passed.append(values[-1]))
    trainer.log({"loss": 0.4, "learning_rate": 1e-4, "grad_norm": 2.0})
    trainer.log({"train_runtime": 1.0})  # transformers' summary
    figures = {"loss/total": 0.5, "optimizer/lr": 1e-4, "optimizer/grad_norm": 2.0}
    assert recorded == [(5, figures)] and passed == [figures]
