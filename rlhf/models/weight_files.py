"""The files of a model's weights in a folder, without importing torch."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""transformers' files of weights, in its order of preference; shards are listed in NAME.index.json."""
FILES_OR_INDICES = tuple(name for whole in WEIGHT_FILES for name in (whole, f"{whole}.index.json"))
"""A model has one of these."""


def weight_files(folder: Path) -> set[str]:
    """The file that transformers loads from a folder, or the shards that its index lists; empty without both.

    The shards need not exist.
    """
    for whole in WEIGHT_FILES:
        if (folder / whole).exists():
            return {whole}
        index = folder / f"{whole}.index.json"
        if index.exists():
            return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return set()
