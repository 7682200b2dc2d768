"""Checkpoints without pickle: what a killed run needs to continue to the same numbers.

A checkpoint is a folder `step-N` with safetensors (trained weights, AdamW moments, generator states) and JSON (trainer state, learning-rate
schedule), sealed by a manifest of hashes. It is written under another name and renamed at the end, so that a folder
that carries the right name but not the right hashes was torn by the machine, and the one before it is used.

Every tensor in it is unsharded, so that a run may resume in another number of processes. All processes take part in gathering
tensors, the main one writes; on several machines the folder must be on a file system that all of them see.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.core.errors import OutputError
from rlhf.distributed import processes, zero
from rlhf.distributed.sharding import full_shape, full_tensor, reshard, set_parameters, shard_like
from rlhf.runs.folder import atomic_folder, atomic_write_text

MANIFEST, WEIGHTS, MOMENTS, STATE = (
    "manifest.json",
    "trainable.safetensors",
    "optimizer.safetensors",
    "state.json",
)
GENERATORS = "generators.safetensors"
TRAINER_STATE = "trainer_state.json"  # transformers looks for this name when it resumes
KEEP = 2


def trainable_state(model: nn.Module, *, everywhere: bool = True) -> dict[str, Tensor]:
    """The trained parameters by name, unsharded; all processes must call.

    Args:
        everywhere: else only the main process keeps them, and each other one holds one at a time.
    """
    reshard(model)
    copies = ((name, _copy(p)) for name, p in model.named_parameters() if p.requires_grad)
    return dict(copies) if everywhere else _kept_by_main(copies)


def _kept_by_main(copies: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies that all processes make together, one at a time, and one process keeps."""
    main = processes.is_main()
    return dict([copy for copy in copies if main])


def _copy(tensor: Tensor) -> Tensor:
    return full_tensor(tensor).detach().cpu().contiguous()


def save_trainable(model: nn.Module, file: Path) -> None:
    """Write the trained parameters, atomically; all processes must call, and continue when the file exists."""
    state = trainable_state(model, everywhere=False)

    def write() -> None:
        unfinished = file.with_suffix(".unfinished")
        unfinished.touch()
        mode = (
            unfinished.stat().st_mode
        )  # as the umask has it; safetensors replaces the file by one of mode 600
        save_file(state, unfinished)
        unfinished.chmod(mode)
        unfinished.replace(file)

    processes.on_main(write)


def best_file(checkpoints: Path, stage: str) -> Path:
    """Where the best weights of a stage are kept while it runs."""
    return checkpoints / f"best-{stage}.safetensors"


def load_trainable(model: nn.Module, file: Path) -> None:
    """Load saved parameters; their names and shapes must be those of the model.

    Raises:
        OutputError: the file is of a run that trained other weights.
    """
    reshard(model)
    saved = load_file(file)
    here = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if saved.keys() != here.keys() or any(saved[name].shape != full_shape(here[name]) for name in saved):
        raise OutputError(
            f"{file} was written by a run that trained other weights.",
            allowed="the adapter settings the run was started with",
            fix="resume with the run's own config.yaml, or start again with another --output",
        )
    set_parameters(model, saved)


def latest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a sentence for each corrupt one that was skipped."""
    found = sorted(checkpoints.glob("step-*"), key=step_of, reverse=True)
    passed_over: list[str] = []
    for folder in found:
        if is_whole(folder):
            return folder, passed_over
        passed_over.append(f"{folder.name} is torn (its hashes do not agree) and was passed over.")
    return None, passed_over


def step_of(checkpoint: Path) -> int:
    """The update a checkpoint was written after, counted over all stages."""
    return int(checkpoint.name.split("-")[1])


def stage_of(checkpoint: Path) -> str:
    """The name of the stage a checkpoint belongs to."""
    return str(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["stage"])


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its hash."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return False
    try:
        hashes = json.loads(manifest.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    return all(
        (folder / name).exists() and file_digest(folder / name) == digest for name, digest in hashes.items()
    )


def seal(folder: Path) -> None:
    """Write the manifest over everything in the folder."""
    hashes = {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    atomic_write_text(folder / MANIFEST, json.dumps(hashes, indent=1))


def file_digest(file: Path) -> str:
    """The file's sha256, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class SafeCheckpoints:
    """Gives a transformers Trainer these checkpoints in place of its own, which are pickled.

    Mixed in before the trainer's class. `step_offset` and `stage_name` let a run of several stages number and tell its
    checkpoints.
    """

    step_offset: int = 0
    stage_name: str = ""

    # What the trainer brings.
    model: Any
    optimizer: Any
    lr_scheduler: Any
    state: Any
    args: Any
    accelerator: Any

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        trained = self.accelerator.unwrap_model(self.model)
        weights, moments = trainable_state(trained, everywhere=False), _moments(trained, self.optimizer)
        generators = processes.all_gather(_generators())
        processes.on_main(lambda: self._write_checkpoint(weights, moments, generators))

    def _write_checkpoint(
        self, weights: dict[str, Tensor], moments: dict[str, Tensor], generators: list[dict[str, Tensor]]
    ) -> None:
        checkpoints = Path(self.args.output_dir)
        with atomic_folder(checkpoints / f"step-{self.step_offset + self.state.global_step}") as folder:
            save_file(weights, folder / WEIGHTS)
            save_file(moments, folder / MOMENTS)
            each = {
                f"{index}/{name}": one for index, own in enumerate(generators) for name, one in own.items()
            }
            save_file(each, folder / GENERATORS)
            state = {"schedule": self.lr_scheduler.state_dict(), "stage": self.stage_name}
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
            self.state.save_to_json(str(folder / TRAINER_STATE))
            self.save_own(folder)
            seal(folder)
        kept = sorted(checkpoints.glob("step-*"), key=step_of)
        for old in kept[:-KEEP]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(
            self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint) / WEIGHTS
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        trained = self.accelerator.unwrap_model(self.model)
        _put_moments(trained, self.optimizer, load_file(folder / MOMENTS))
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # DeepSpeed's stands in another
        schedule.load_state_dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["schedule"])
        # A schedule sets the next update's rate after each update, and a run with more updates than before has another schedule.
        rates = [
            rate * share(schedule.last_epoch)
            for rate, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates  # noqa: SLF001
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.load_own(folder)

    def save_own(self, folder: Path) -> None:
        """Write what else the trainer must remember into a checkpoint; nothing, unless overridden."""

    def load_own(self, folder: Path) -> None:
        """Take up what `save_own` wrote."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = load_file(Path(checkpoint) / GENERATORS)
        # A process that the run did not have before continues from the main one's state.
        own = str(processes.rank()) if f"{processes.rank()}/torch" in saved else "0"
        states = {name.partition("/")[2]: one for name, one in saved.items() if name.partition("/")[0] == own}
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
        name, keys, *rest = _from_bytes(states["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        version, internal, gauss = _from_bytes(states["python"])
        random.setstate((version, tuple(internal), gauss))


def _moments(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """AdamW's state by parameter and kind, whole, in the main process; where a part of a parameter is empty there may be none.

    Not by `torch.distributed.checkpoint.state_dict`: a parameter that has not been stepped yet (the policy in its critic's
    warm-up) has no state, which `set_optimizer_state_dict` refuses or, not strict, replaces by that of one step.
    """
    reshard(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if zero.is_sharded(model):
        by_parameter = zero.moments(optimizer)
        return _kept_by_main(
            (f"{name}/{kind}", _copy(one))
            for name, p in trained.items()
            for kind, one in by_parameter[id(p)].items()
        )
    kinds = processes.broadcast_from_main(
        {name: list(optimizer.state.get(p, ())) for name, p in trained.items()}
    )
    return _kept_by_main(
        (f"{name}/{kind}", _copy(optimizer.state.get(p, {}).get(kind, torch.zeros_like(p))))
        for name, p in trained.items()
        for kind in kinds[name]
    )


def _put_moments(model: nn.Module, optimizer: Any, saved: dict[str, Tensor]) -> None:
    """Load the state that `_moments` returned into AdamW."""
    reshard(model)
    named = dict(model.named_parameters())
    if zero.is_sharded(model):
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            name, kind = key.rsplit("/", 1)
            states.setdefault(id(named[name]), {})[kind] = value
        zero.load_moments(optimizer, states)
        return
    beside = optimizer.param_groups[0].get("fused")  # or AdamW keeps its step counter on the CPU
    for key, value in saved.items():
        name, kind = key.rsplit("/", 1)
        parameter = named[name]
        counter = value.to(parameter.device) if beside else value
        optimizer.state[parameter][kind] = counter if kind == "step" else shard_like(value, parameter)


def _generators() -> dict[str, Tensor]:
    """The states of this process's generators."""
    name, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _as_bytes([name, np.asarray(keys).tolist(), *rest]),
        "python": _as_bytes(random.getstate()),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _as_bytes(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()).decode())
