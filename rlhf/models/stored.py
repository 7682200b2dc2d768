"""Read what the files of a base contain, before its weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from rlhf.models.loading_errors import LOADING_ERRORS, cannot_load
from rlhf.models.names import HEAD
from rlhf.models.weight_files import WEIGHT_FILES


@dataclass(frozen=True)
class StoredHead:
    """The trained head of a base that is a sequence classifier."""

    names: tuple[str, ...]
    """Names of its outputs, from the config."""
    outputs: int
    """Rows of its weight."""

    def fits(self, attributes: Sequence[str]) -> bool:
        """Whether its outputs are these attributes: a single one, or the same names in the same order."""
        return self.outputs == len(attributes) and (self.outputs == 1 or self.names == tuple(attributes))

    def note(self, attributes: Sequence[str]) -> str:
        """A message for the user: whether the head is used or dropped."""
        shown = f"{self.outputs} output{'s' if self.outputs > 1 else ''}: {', '.join(self.names)}"
        if self.fits(attributes):
            return f"The base is a sequence classifier ({shown}). Training starts from its trained head."
        keeps = f" To keep it: attributes=[{attributes[0]}]" if self.outputs == 1 else ""
        return (
            f"The base is a sequence classifier ({shown}). Its trained head is dropped, since the "
            f"attributes are {', '.join(attributes)}; a new head is trained.{keeps}"
        )


def stored_head(config: Any, base: str, revision: str | None, *, fetch: bool = True) -> StoredHead | None:
    """The trained head among a base's weights; None if there is none.

    The weights decide, not `architectures`: other projects store classifiers under names of their own.

    Args:
        fetch: download weights that are not in the Hub's cache.
    """
    outputs = stored_rows(base, revision, f"{HEAD}.weight", fetch=fetch)
    if outputs is None:
        return None
    labels = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    # A config without labels has two default ones, regardless of the head.
    names = labels if len(labels) == outputs else tuple(f"LABEL_{index}" for index in range(outputs))
    return StoredHead(names, outputs)


def stored_rows(base: str, revision: str | None, weight: str, *, fetch: bool = True) -> int | None:
    """The rows of a weight in a base's files, of safetensors or of torch; None if it does not exist."""
    for whole in WEIGHT_FILES:
        file = file_of(base, revision, whole, fetch=fetch)
        index = None if file else file_of(base, revision, f"{whole}.index.json", fetch=fetch)
        if file is None and index is None:
            continue
        if index is not None:
            shard = json.loads(Path(index).read_text("utf-8"))["weight_map"].get(weight)
            file = shard and file_of(base, revision, shard, fetch=fetch)
        return None if file is None else _rows_in(base, file, weight)
    return None


def _rows_in(base: str, file: str, weight: str) -> int | None:
    """The rows of a weight in a file, without reading the weights; None if it does not exist."""
    try:
        tensor = load_state_dict(file, "meta").get(weight)
    except LOADING_ERRORS as error:
        raise cannot_load(base, error) from error
    return None if tensor is None else int(tensor.shape[0])


def file_of(base: str, revision: str | None, name: str, *, fetch: bool = True) -> str | None:
    """The path of a file of a base; None if it does not exist, or is not cached and `fetch` is false."""
    if base == "embedded":
        return None
    try:
        file: str | None = cached_file(
            base,
            name,
            revision=revision,
            local_files_only=not fetch,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError:  # the loader reports missing folders and repositories
        return None
    return file
