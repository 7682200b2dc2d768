"""A value of a config as text in one line."""

from __future__ import annotations

import json
from typing import Any

import yaml


def as_yaml(value: Any) -> str:
    """The value as YAML in one line, which a config file and the command line read back.

    A value that JSON cannot hold, such as a path, is written as its string.
    """
    plain = json.loads(json.dumps(value, default=str))
    text: str = yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
