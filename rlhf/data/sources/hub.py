"""Read data sets by their Hugging Face name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf.core.errors import DataError
from rlhf.core.hub import find_missing
from rlhf.core.places import missing_local


def hub_rows(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    revision: str | None = None,
    config_name: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """Each row of one split, with its place `NAME (SPLIT): row N`, or `NAME/DATA_DIR (SPLIT): row N`.

    Raises:
        DataError: the data set is not found, has no such split, or the Hub cannot be reached.
    """
    import datasets

    if missing := find_missing(name, "dataset", revision):
        raise DataError(
            f"{name!r} is no file or folder here, and no data set: {missing.found}",
            allowed="`demo`, a local file or folder, or the name and split of a data set the Hub can serve",
            fix=missing.fix,
        )
    configuration = {"name": config_name} if config_name else {}
    try:
        table = datasets.load_dataset(
            name, **configuration, data_dir=data_dir, split=split, revision=revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        near = missing_local(name)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name!r} is no file or folder here, and the Hub gave no split {split!r} of it: "
            f"{reason}{near and f'; {near}'}",
            allowed="`demo`, a local file or folder, or the name and split of a data set the Hub can serve",
            fix=f"where the Hub can be reached, `hf download {name} --repo-type dataset --local-dir FOLDER`; "
            "then FOLDER in its place: as the source's `path`, `benchmark`, or --data",
        ) from error
    where = "/".join(filter(None, (name, config_name, data_dir)))
    return ((f"{where} ({split}): row {number}", dict(row)) for number, row in enumerate(table, start=1))
