"""The folder of a model: `final/`, a checkpoint of a run, or the cached files of a model on the Hub.

A checkpoint contains only trained weights. The other files of `final/` (card, adapter config, tokenizer) do
not change in a run and are written once, to `checkpoints/model`. The two are combined in a temporary folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlhf.core.errors import ModelError
from rlhf.core.hub import pushed_model
from rlhf.distributed import processes
from rlhf.models.names import POLICY, TRAINED_WHOLE
from rlhf.runs.checkpoints import MANIFEST, WEIGHTS, file_digest, is_complete

SHELL = "model"
_temporary: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the program exits


def write_shell(checkpoints: Path, write_final: Callable[[Path], None]) -> None:
    """Write the files that all checkpoints of a run share; a collective call.

    Args:
        write_final: writes a complete `final/` folder, from which the weights are then removed.
    """
    shell = checkpoints / SHELL
    write_final(shell)

    def remove_weights() -> None:
        for file in shell.glob("*.safetensors*"):
            file.unlink()

    processes.on_main(remove_weights)


def model_folder(path: str | Path) -> Path:
    """The folder of a model.

    For a checkpoint it is a temporary folder with its model, for the Hub name of a pushed adapter the folder
    of its files in the cache.

    Raises:
        ModelError: the checkpoint is corrupt, or the files that checkpoints share are missing.
    """
    folder = Path(path)
    if (folder / WEIGHTS).exists():
        return _assembled(folder.absolute())
    return pushed_model(str(path)) or folder


@functools.cache
def _assembled(checkpoint: Path) -> Path:
    shell = checkpoint.parent / SHELL
    if not (checkpoint / MANIFEST).exists() or not is_complete(checkpoint):
        raise ModelError(f"The checkpoint {checkpoint} is corrupt.", fix="use an older one, or final/")
    if not shell.is_dir():
        raise ModelError(
            f"{shell} is missing, which holds the card and the tokenizer of {checkpoint.name}.",
            allowed="a checkpoint inside its run's folder",
            fix="keep the checkpoint where its run wrote it, or use final/",
        )
    temporary = tempfile.TemporaryDirectory(prefix="rlhf-checkpoint-")
    _temporary.append(temporary)
    folder = Path(temporary.name) / checkpoint.name
    shutil.copytree(shell, folder)
    weights = load_file(checkpoint / WEIGHTS)
    config_file = folder / "config.json"  # of a model with all weights trained
    if config_file.exists():
        config = json.loads(config_file.read_text("utf-8"))
        dtype = getattr(torch, config["dtype"])
        file = folder / "model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, file, {"format": "pt"})
        config[TRAINED_WHOLE]["weights"] = hashlib.sha256(file_digest(file).encode()).hexdigest()
        config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    else:
        adapter = f".{POLICY}."  # other adapters, such as the critic's, are not part of the model
        named = {
            name.replace(f".modules_to_save.{POLICY}.", ".").replace(adapter, "."): tensor
            for name, tensor in weights.items()
            if adapter in name
        }
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
