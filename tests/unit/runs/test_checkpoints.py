from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from rlhf.core.errors import OutputError
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import SafeCheckpoints


class ToyTrainer(SafeCheckpoints):
    """A trainer of one frozen and one trained layer, with the attributes that checkpoints use."""

    def __init__(self, folder: Path, steps: int = 8) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        self.model[0].requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / steps)
        self.accelerator = SimpleNamespace(unwrap_model=lambda model: model)
        self.args = SimpleNamespace(should_save=True, output_dir=str(folder))
        self.state = SimpleNamespace(
            global_step=0,
            save_to_json=lambda file: Path(file).write_text(
                json.dumps({"global_step": self.state.global_step})
            ),
        )
        self.stage_name = "first"

    def update(self) -> float:
        """One update on random inputs; a checkpoint holds all state of the next one."""
        loss = self.model(torch.randn(4, 3)).square().sum() + float(np.random.rand()) * random.random()
        loss.backward()
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        return loss.item()

    def save(self) -> None:
        self._save_checkpoint(self.model, None)

    def load(self, folder: Path) -> None:
        self._load_from_checkpoint(str(folder))
        self._load_optimizer_and_scheduler(str(folder))
        self._load_rng_state(str(folder))


def test_updates_after_a_checkpoint_are_identical(tmp_path: Path) -> None:
    trainer = ToyTrainer(tmp_path)
    for _ in range(3):
        trainer.update()
    trainer.save()
    expected = [trainer.update() for _ in range(3)]
    resumed = ToyTrainer(tmp_path)
    torch.manual_seed(99)
    resumed.load(tmp_path / "step-3")
    assert [resumed.update() for _ in range(3)] == expected
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True)
    )


def test_a_longer_run_continues_with_the_rates_of_its_new_schedule(tmp_path: Path) -> None:
    trainer = ToyTrainer(tmp_path, steps=4)
    for _ in range(3):
        trainer.update()
    trainer.save()
    longer = ToyTrainer(tmp_path, steps=12)
    longer.load(tmp_path / "step-3")
    rates = []
    for _ in range(3):
        assert longer.lr_scheduler.get_last_lr() == [longer.optimizer.param_groups[0]["lr"]]
        rates.append(longer.optimizer.param_groups[0]["lr"])
        longer.update()
    assert rates == pytest.approx([0.1 * 9 / 12, 0.1 * 8 / 12, 0.1 * 7 / 12])


def test_a_checkpoint_holds_trained_weights_only_and_no_pickle(tmp_path: Path) -> None:
    trainer = ToyTrainer(tmp_path)
    trainer.update()
    trainer.save()
    assert set(checkpoints.trainable_state(trainer.model)) == {"1.weight", "1.bias"}
    assert sorted(file.name for file in (tmp_path / "step-1").iterdir()) == [
        "generators.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
        "trainable.safetensors",
        "trainer_state.json",
    ]


def test_the_last_two_checkpoints_are_kept_and_numbered_over_stages(tmp_path: Path) -> None:
    trainer = ToyTrainer(tmp_path)
    trainer.step_offset, trainer.stage_name = 8, "second"
    for _ in range(3):
        trainer.update()
        trainer.save()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-10", "step-11"]
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and skipped == []
    assert (checkpoints.step_of(newest), checkpoints.stage_of(newest)) == (11, "second")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Any] = {
    "a flipped bit": lambda folder: flip(folder / "optimizer.safetensors"),
    "a cut file": lambda folder: (folder / "trainable.safetensors").write_bytes(b""),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"state.json": "ab'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    trainer = ToyTrainer(tmp_path)
    for _ in range(2):
        trainer.update()
        trainer.save()
    DAMAGES[damage](tmp_path / "step-2")
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest == tmp_path / "step-1"
    assert len(skipped) == 1 and skipped[0].startswith("step-2 is corrupt")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) == (None, [])


def test_weights_of_another_adapter_are_refused(tmp_path: Path) -> None:
    trainer = ToyTrainer(tmp_path)
    file = checkpoints.best_file(tmp_path, "first")
    checkpoints.save_trainable(trainer.model, file)
    checkpoints.load_trainable(trainer.model, file)
    wider = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    with pytest.raises(OutputError, match="parameters") as caught:
        checkpoints.load_trainable(wider, file)
    assert caught.value.exit_code == 2
    with pytest.raises(OutputError, match="parameters"):
        checkpoints.load_trainable(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), file
        )  # trains more parameters


def test_a_failed_write_of_the_best_weights_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save_trainable(ToyTrainer(tmp_path).model, checkpoints.best_file(tmp_path, "first"))
    assert list(tmp_path.iterdir()) == []


def steps_of(trainer: ToyTrainer) -> list[Any]:
    """AdamW's step of weight and bias."""
    return [trainer.optimizer.state[p].get("step") for p in trainer.model[1].parameters()]


def test_parameters_without_a_step_have_no_moments_after_resume(tmp_path: Path) -> None:
    """As of a policy in its critic's warm-up.

    An invented step would change the bias correction of later ones.
    """
    trainer = ToyTrainer(tmp_path)
    trainer.model[1].bias.grad = torch.ones(1)
    trainer.optimizer.step()
    trainer.optimizer.step()
    trainer.save()
    resumed = ToyTrainer(tmp_path / "other")
    resumed.load(tmp_path / "step-0")
    assert steps_of(trainer) == steps_of(resumed) == [None, torch.tensor(2.0)]


def test_torchs_optimizer_state_dict_does_not_support_this(tmp_path: Path) -> None:
    """It refuses missing states, or invents them.

    When this test fails, torch supports them: delete `_moments`.
    """
    trainer, resumed = ToyTrainer(tmp_path), ToyTrainer(tmp_path)
    trainer.model[1].bias.grad = torch.ones(1)
    trainer.optimizer.step()
    trainer.optimizer.step()
    saved = get_optimizer_state_dict(
        trainer.model, trainer.optimizer, options=StateDictOptions(full_state_dict=True)
    )
    with pytest.raises(RuntimeError, match="Missing optimizer state"):
        set_optimizer_state_dict(
            resumed.model, resumed.optimizer, saved, options=StateDictOptions(full_state_dict=True)
        )
    loose = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, saved, options=loose)
    assert steps_of(resumed) == [torch.tensor(1.0), torch.tensor(2.0)]
