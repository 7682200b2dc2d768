"""A checkpoint of a run as a model's folder, so that whatever takes `final/` takes `checkpoints/step-N` too.

A checkpoint holds weights by their names in training. All else that `final/` holds (card, adapter config, tokenizer) is the same
at every update and is written once a run, to `checkpoints/model`. The two are put together in a temporary folder.
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
from rlhf.distributed import processes
from rlhf.models.loading import POLICY, TRAINED_WHOLE
from rlhf.runs.checkpoints import MANIFEST, WEIGHTS, file_digest, is_complete

SHELL = "model"
_temporary: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the program ends


def write_shell(checkpoints: Path, write_final: Callable[[Path], None]) -> None:
    """Write what all checkpoints of a run share; all processes must call.

    Args:
        write_final: writes a whole `final/` folder, whose weights are then taken out.
    """
    shell = checkpoints / SHELL
    write_final(shell)

    def remove_weights() -> None:
        for file in shell.glob("*.safetensors*"):
            file.unlink()

    processes.on_main(remove_weights)


def model_folder(path: str | Path) -> Path:
    """The folder of a model: the path itself or, where that is a checkpoint, a temporary folder with its model.

    Raises:
        ModelError: the checkpoint is torn, or its run did not write what checkpoints share.
    """
    folder = Path(path)
    return _assembled(folder.absolute()) if (folder / WEIGHTS).exists() else folder


@functools.cache
def _assembled(checkpoint: Path) -> Path:
    shell = checkpoint.parent / SHELL
    if not (checkpoint / MANIFEST).exists() or not is_complete(checkpoint):
        raise ModelError(f"The checkpoint {checkpoint} is torn.", fix="use an older one, or final/")
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
    whole = folder / "config.json"
    if whole.exists():
        config = json.loads(whole.read_text("utf-8"))
        dtype = getattr(torch, config["dtype"])
        file = folder / "model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, file, {"format": "pt"})
        config[TRAINED_WHOLE]["weights"] = hashlib.sha256(file_digest(file).encode()).hexdigest()
        whole.write_text(json.dumps(config, indent=2))
    else:
        adapter = f".{POLICY}."  # others, such as the critic's, are no part of the model
        named = {
            name.replace(f".modules_to_save.{POLICY}.", ".").replace(adapter, "."): tensor
            for name, tensor in weights.items()
            if adapter in name
        }
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
