"""What of a config a tracker may receive: numbers, switches, and the text of a few named keys.

Paths, URLs, names of environment variables and free text stay on the machine: a tracker may be a public page.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path

from pydantic import BaseModel

from rlhf.runs.files import leaves

TEXT = (
    *("model.dtype", "model.quantization", "adapter.targets", "recipe"),
    *("stages.*.name", "stages.*.preference_loss", "*.schedule", "attributes.*"),
    *("algorithm.name", "algorithm.reduction", "algorithm.unfinished", "algorithm.kl.*"),
    *("rollouts.engine", "rollouts.importance_sampling.level"),
    *("data.*.format", "data.*.split", "data.*.annotations"),
)
"""Keys whose text is sent. All are names out of closed lists, or names of attributes, stages and splits."""
FOLDER_OR_NAME = ("model.base", "data.*.path")
"""Keys of which a Hugging Face name is sent whole, and of a local path only the last part."""
NEVER = ("*_kwargs*", "*extra_body*", "data.*.where*", "data.*.columns*")
"""Keys that hold the user's own content, of any type."""
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def allowed_config(config: BaseModel) -> dict[str, str | int | float | bool]:
    """The part of a config that a tracker receives, by dotted key."""
    kept: dict[str, str | int | float | bool] = {}
    for key, text in leaves(config.model_dump(mode="json")):
        value = json.loads(text)
        if _matches(key, NEVER) or value is None:
            continue
        if isinstance(value, bool | int | float) or (isinstance(value, str) and _matches(key, TEXT)):
            kept[key] = value
        elif isinstance(value, str) and _matches(key, FOLDER_OR_NAME):
            kept[key] = _without_folders(value)
    return kept


def redacted(text: str) -> str:
    """A message without user names and passwords of URLs, and without the value of any secret environment
    variable."""
    text = re.sub(r"(\w://)[^/@\s]+@", r"\1***@", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return text


def _without_folders(place: str) -> str:
    """`owner/name` and bare names as they are; of anything that can be a path or a URL the last part."""
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not place.startswith(".")
    return place if is_name and not Path(place).exists() else Path(place).name


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
