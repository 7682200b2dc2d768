"""Every command names the phase in which the GPU's memory ran out, and the first thing to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from typer.testing import CliRunner

from policy.dpo.trainer import PackedDPOTrainer
from reward.justifier import judge
from reward.justifier.trainer import JustifierTrainer
from reward.principle.scorer import PrincipleScorer
from reward.principle.trainer import PrincipleTrainer
from reward.scorer import Scorer
from rlhf import cli
from rlhf.config.schema import ModelConfig
from rlhf.models import trunk
from rlhf.runs.gpu_memory import DESCRIPTIONS, FIRST_CHANGES, GpuMemoryError, memory_error


def no_memory(*_: Any, **__: Any) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Empty:
    """An object at whose every attribute memory runs out."""

    def __getattr__(self, name: str) -> Any:
        no_memory()


MODEL = ModelConfig(base="embedded")
CARD = {"base": "embedded", "revision": None, "dtype": "bfloat16", "quantization": "none"}
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "load_trunk": ("loading", lambda: trunk.load_trunk(MODEL)),
    "load_trunk_of": ("loading", lambda: trunk.load_trunk_of(CARD)),
    "score": ("scoring", lambda: Scorer.score(Empty(), [()])),  # type: ignore[arg-type, list-item]
    "principle": ("scoring", lambda: PrincipleScorer.score(Empty(), [()])),  # type: ignore[arg-type, list-item]
    "justifier": ("rollouts", lambda: judge.LocalWriter._write(Empty(), [()])),  # type: ignore[arg-type]
    "train-justifier": ("update", lambda: JustifierTrainer.training_step(object.__new__(JustifierTrainer))),
    "train-principle": ("update", lambda: PrincipleTrainer.training_step(Empty(), Empty(), {})),
    "train-dpo": ("update", lambda: PackedDPOTrainer.training_step(Empty(), Empty(), {})),
}


@pytest.mark.parametrize("case", CASES)
def test_phases_of_commands_without_a_plan(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "load_causal", no_memory)
    monkeypatch.setattr("trl.SFTTrainer.training_step", no_memory)
    name, call = CASES[case]
    with pytest.raises(GpuMemoryError) as caught:
        call()
    assert (caught.value.phase, caught.value.exit_code) == (name, 1)
    assert caught.value.fix == FIRST_CHANGES[name]


def test_every_phase_has_a_description_and_a_first_change() -> None:
    assert FIRST_CHANGES.keys() == DESCRIPTIONS.keys()


def test_outside_of_phases_it_is_one_message_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        no_memory()

    monkeypatch.setattr("rlhf.commands.configs.command", command)
    result = CliRunner().invoke(cli.app, ["configs"], prog_name="rlhf")
    assert result.exit_code == 1
    assert "Tried to allocate" in result.stderr
    assert "Traceback" not in result.output


def test_other_errors_are_none_of_it() -> None:
    assert memory_error(RuntimeError("shapes")) is None
    assert memory_error(MemoryError("out of memory")) is None  # of the machine
    assert memory_error(GpuMemoryError("update", "CUDA out of memory")) is None
