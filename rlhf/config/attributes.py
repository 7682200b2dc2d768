"""The outputs of a reward model's head where a config names none and has no ratings.

Without ratings nothing trains an output but the reward. The head then has that alone, or the outputs of the
`start` model. The config of an existing run folder decides first, so that `--resume` finds the head it left,
whatever the default of the version that began the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf.core.places import expand

REWARD_ALONE = ("helpfulness",)
RUN_CONFIG, MODEL_CARD = "config.yaml", "reward.json"
SHARED_BY_CHECKPOINTS = "model"
"""The folder beside a run's checkpoints with the files that all of them share."""


def fill(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with `attributes`, if it has neither those nor ratings; else unchanged."""
    data = config.get("data")
    ratings = data.get("ratings") if isinstance(data, Mapping) else getattr(data, "ratings", None)
    if "attributes" in config or ratings:
        return dict(config)
    return {**config, "attributes": _of_run(config) or _of_start(config) or list(REWARD_ALONE)}


def _of_run(config: Mapping[str, Any]) -> list[str] | None:
    folder = _folder(config.get("output"))
    return None if folder is None else _names_in(folder / RUN_CONFIG, yaml.safe_load)


def _of_start(config: Mapping[str, Any]) -> list[str] | None:
    folder = _folder(config.get("start"))
    if folder is None:
        return None
    cards = (folder / MODEL_CARD, folder.parent / SHARED_BY_CHECKPOINTS / MODEL_CARD)
    return next(filter(None, (_names_in(card, json.loads) for card in cards)), None)


def _folder(value: Any) -> Path | None:
    """A path as the schema reads it; None where the schema will report an error."""
    try:
        return Path(expand(str(value))) if isinstance(value, str | Path) else None
    except ValueError:
        return None


def _names_in(file: Path, parse: Callable[[str], Any]) -> list[str] | None:
    """The attributes in a file; None if it has none. A faulty file is reported where it is used."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    names = content.get("attributes") if isinstance(content, dict) else None
    return names if isinstance(names, list) and names else None
