"""Checkpoints without pickle, from which a killed run continues with identical numbers.

A checkpoint is a folder `step-N` with safetensors (trained weights, AdamW moments, random generator states),
JSON (trainer state, learning-rate schedule) and a manifest of hashes. It is written under a temporary name
and renamed when complete. A folder whose hashes do not match is corrupt, and the checkpoint before it is
used.

All tensors are unsharded, so that a run may resume with another number of processes. All processes gather
tensors, the main process writes. With several machines the folder must be on a shared file system.
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
from rlhf.runs.files import HALF_WRITTEN, atomic_folder, atomic_write_text

MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, MOMENTS = "trainable.safetensors", "optimizer.safetensors"
GENERATORS = "generators.safetensors"
TRAINER_STATE = "trainer_state.json"  # the name that transformers reads on resume
KEEP = 2
"""Checkpoints of a run that are kept."""


def trainable_state(model: nn.Module, *, everywhere: bool = True) -> dict[str, Tensor]:
    """The trained parameters by name, unsharded; a collective call.

    Args:
        everywhere: return them in all processes; otherwise in the main process only, {} in the others.
    """
    reshard(model)
    copies = ((name, _copy(p)) for name, p in model.named_parameters() if p.requires_grad)
    return dict(copies) if everywhere else _kept_by_main(copies)


def _kept_by_main(copies: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Gather copies one at a time, in all processes, and keep them in the main process."""
    main = processes.is_main()
    return dict([copy for copy in copies if main])  # every process must iterate


def _copy(tensor: Tensor) -> Tensor:
    return full_tensor(tensor).detach().cpu().contiguous()


def save_trainable(model: nn.Module, file: Path) -> None:
    """Write the trained parameters atomically; a collective call that returns when the file exists."""
    state = trainable_state(model, everywhere=False)

    def write() -> None:
        unfinished = file.with_name(f".{file.name}{HALF_WRITTEN}")  # a killed run's is removed on resume
        try:
            unfinished.touch()
            mode = unfinished.stat().st_mode  # from the umask; safetensors creates a file with mode 600
            save_file(state, unfinished)
            unfinished.chmod(mode)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    processes.on_main(write)


def best_file(checkpoints: Path, stage: str) -> Path:
    """The file of the best weights of a running stage."""
    return checkpoints / f"best-{stage}.safetensors"


def load_trainable(model: nn.Module, file: Path) -> None:
    """Load saved parameters; their names and shapes must be those of the model.

    Raises:
        OutputError: the file is from a run that trained other parameters.
    """
    reshard(model)
    saved = load_file(file)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if saved.keys() != parameters.keys() or any(
        saved[name].shape != full_shape(parameters[name]) for name in saved
    ):
        raise OutputError(
            f"{file} was written by a run that trained other parameters.",
            allowed="the adapter settings of the original run",
            fix="resume with the run's config.yaml, or start a new run with another --output",
        )
    set_parameters(model, saved)


def latest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a message for each newer corrupt one."""
    newest_first = sorted(checkpoints.glob("step-*"), key=step_of, reverse=True)
    skipped: list[str] = []
    for folder in newest_first:
        if is_complete(folder):
            return folder, skipped
        skipped.append(f"{folder.name} is corrupt (its hashes do not match) and was skipped.")
    return None, skipped


def latest_everywhere(folder: Path) -> Path | None:
    """The newest complete checkpoint, the same in all processes; corrupt ones are reported."""
    checkpoint, skipped = processes.from_main(lambda: latest(folder))
    for line in skipped:
        print(line)
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """The number of updates before a checkpoint, over all stages."""
    return int(checkpoint.name.split("-")[1])


def stage_of(checkpoint: Path) -> str:
    """The name of the stage a checkpoint belongs to."""
    return str(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["stage"])


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest exists and has its hash."""
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
    """Write the manifest of all files in the folder."""
    hashes = {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    atomic_write_text(folder / MANIFEST, json.dumps(hashes, indent=1))


def file_digest(file: Path) -> str:
    """The file's sha256, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class SafeCheckpoints:
    """A mix-in, before the Trainer in the base classes, that replaces transformers' pickled checkpoints.

    `step_offset` and `stage_name` number and label the checkpoints of a run with several stages.
    """

    step_offset: int = 0
    stage_name: str = ""

    # Attributes of transformers' Trainer.
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
            by_rank = {
                f"{rank}/{name}": state
                for rank, states in enumerate(generators)
                for name, state in states.items()
            }
            save_file(by_rank, folder / GENERATORS)
            state = {"schedule": self.lr_scheduler.state_dict(), "stage": self.stage_name}
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
            self.state.save_to_json(str(folder / TRAINER_STATE))
            self.save_extra_state(folder)
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
        _load_moments(trained, self.optimizer, load_file(folder / MOMENTS))
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # DeepSpeed wraps it
        schedule.load_state_dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["schedule"])
        # The last rate, saved in the checkpoint, is that of the old schedule; a longer run has another one.
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates  # noqa: SLF001
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.load_extra_state(folder)

    def save_extra_state(self, folder: Path) -> None:
        """Write further state into a checkpoint folder; a hook that does nothing by default."""

    def load_extra_state(self, folder: Path) -> None:
        """Load the state that `save_extra_state` wrote."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = load_file(Path(checkpoint) / GENERATORS)
        # A rank that the saved run did not have continues from rank 0's state.
        rank = processes.rank() if f"{processes.rank()}/torch" in saved else 0
        prefix = f"{rank}/"
        states = {key.removeprefix(prefix): state for key, state in saved.items() if key.startswith(prefix)}
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
        name, keys, *rest = _from_bytes(states["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        version, internal, gauss = _from_bytes(states["python"])
        random.setstate((version, tuple(internal), gauss))


def _moments(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """AdamW's state by parameter and name, unsharded, in the main process.

    A rank with an empty shard may lack it.

    Not by `torch.distributed.checkpoint.state_dict`: a parameter that has not been stepped yet (the policy in
    its critic's warm-up) has no state. `set_optimizer_state_dict` refuses that or, with strict=False, invents
    the state of one step.
    """
    reshard(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if zero.is_sharded(model):
        by_parameter = zero.moments(optimizer)
        return _kept_by_main(
            (f"{name}/{kind}", _copy(value))
            for name, p in trained.items()
            for kind, value in by_parameter[id(p)].items()
        )
    kinds = processes.broadcast_from_main(
        {name: list(optimizer.state.get(p, ())) for name, p in trained.items()}
    )
    return _kept_by_main(
        (f"{name}/{kind}", _copy(optimizer.state.get(p, {}).get(kind, torch.zeros_like(p))))
        for name, p in trained.items()
        for kind in kinds[name]
    )


def _load_moments(model: nn.Module, optimizer: Any, saved: dict[str, Tensor]) -> None:
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
    fused = optimizer.param_groups[0].get("fused")  # otherwise AdamW keeps its step counter on the CPU
    for key, value in saved.items():
        name, kind = key.rsplit("/", 1)
        parameter = named[name]
        counter = value.to(parameter.device) if fused else value
        optimizer.state[parameter][kind] = counter if kind == "step" else shard_like(value, parameter)


def _generators() -> dict[str, Tensor]:
    """The states of this process's random generators."""
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
