"""The tiny models of `architectures` are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import architectures
import pytest


@pytest.mark.parametrize("name", architectures.FAMILIES)
def test_every_family_can_be_built(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == architectures.FAMILIES[name][0]
    assert (folder / "model.safetensors").exists()
