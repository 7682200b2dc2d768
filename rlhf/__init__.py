"""RLHF alignment: a hybrid reward model and a REINFORCE loop on one frozen base model.

The names imported below are the public API. Each is loaded when it is first used, so that `import rlhf` stays
light.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # With `python -m rlhf` the current folder comes first on sys.path, where a user's `policy.py` or
    # `random.py` would
    # shadow a module of this project or of Python. It is moved to the end.
    sys.path.append(sys.path.pop(0))

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.shared_base import SharedBase as SharedBase
    from reward.scorer import Score as Score
    from reward.scorer import Scorer as Scorer
    from rlhf.config.schema import DataSource as DataSource
    from rlhf.core.errors import RlhfError as RlhfError
    from rlhf.core.records import Message as Message
    from rlhf.core.records import Prompt as Prompt
    from rlhf.data.checks import gold_score as gold_score
    from rlhf.data.load import load_prompts as load_prompts

__version__ = "0.1.0"

_MODULES = {
    "DataSource": "rlhf.config.schema",
    "Message": "rlhf.core.records",
    "Prompt": "rlhf.core.records",
    "RlhfError": "rlhf.core.errors",
    "Score": "reward.scorer",
    "Scorer": "reward.scorer",
    "SharedBase": "policy.shared_base",
    "gold_score": "rlhf.data.checks",
    "load_prompts": "rlhf.data.load",
}


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
