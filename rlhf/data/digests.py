"""Digests of records, by which a resumed run recognises its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def digest_of(records: Iterable[Any]) -> str:
    """A hash of records in their order, wherever they were read from: `source` and `place` do not count.

    Fields that are empty do not count: a field that a later version adds changes no digest of records without
    it.
    """
    digest = hashlib.sha256()
    for record in records:
        content = {name: value for name, value in _filled(record).items() if name not in ("source", "place")}
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _filled(value: Any) -> Any:
    """A record as JSON, without what is empty."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        filled = {str(name): _filled(item) for name, item in value.items()}
        return {name: item for name, item in filled.items() if item not in (None, "", [], {})}
    if isinstance(value, list | tuple):
        return [_filled(item) for item in value]
    return value if isinstance(value, str | int | float | None) else repr(value)
