"""RLHF alignment: a hybrid reward model and a REINFORCE loop on one frozen base model.

The names imported below are the public API. Each is loaded when it is first used, so that `import rlhf` stays
light.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # With `python -m rlhf` the current folder comes first on sys.path, where a user's `policy.py` or
    # `random.py` would shadow a module of this project or of Python. It is moved to the end.
    sys.path.append(sys.path.pop(0))

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.recipe import align_policy as align_policy
    from policy.shared_base import SharedBase as SharedBase
    from policy.update.advantages import generalised_advantages as generalised_advantages
    from policy.update.advantages import leave_one_out as leave_one_out
    from policy.update.losses import kl_loss as kl_loss
    from policy.update.losses import kl_of_answers as kl_of_answers
    from policy.update.losses import kl_of_tokens as kl_of_tokens
    from policy.update.losses import reinforce as reinforce
    from reward.evaluation.systems import compare_systems as compare_systems
    from reward.evaluation.winrate import best_of_curve as best_of_curve
    from reward.evaluation.winrate import kl_bound as kl_bound
    from reward.losses import bradley_terry as bradley_terry
    from reward.losses import regression as regression
    from reward.scorer import Score as Score
    from reward.scorer import Scorer as Scorer
    from reward.training.recipe import train_reward as train_reward
    from rlhf.adapters.extrapolation import extrapolate_folders as extrapolate_folders
    from rlhf.config.load import load_config as load_config
    from rlhf.config.policy import PolicyConfig as PolicyConfig
    from rlhf.config.reward import RewardConfig as RewardConfig
    from rlhf.config.schema import DataSource as DataSource
    from rlhf.core.errors import RlhfError as RlhfError
    from rlhf.core.records import Message as Message
    from rlhf.core.records import Preference as Preference
    from rlhf.core.records import Prompt as Prompt
    from rlhf.core.records import Rating as Rating
    from rlhf.data.checks import gold_score as gold_score
    from rlhf.data.load import load_preferences as load_preferences
    from rlhf.data.load import load_prompts as load_prompts
    from rlhf.data.load import load_ratings as load_ratings

__version__ = "0.1.0"

_MODULES = {
    "DataSource": "rlhf.config.schema",
    "Message": "rlhf.core.records",
    "PolicyConfig": "rlhf.config.policy",
    "Preference": "rlhf.core.records",
    "Prompt": "rlhf.core.records",
    "Rating": "rlhf.core.records",
    "RewardConfig": "rlhf.config.reward",
    "RlhfError": "rlhf.core.errors",
    "Score": "reward.scorer",
    "Scorer": "reward.scorer",
    "SharedBase": "policy.shared_base",
    "align_policy": "policy.recipe",
    "best_of_curve": "reward.evaluation.winrate",
    "bradley_terry": "reward.losses",
    "compare_systems": "reward.evaluation.systems",
    "extrapolate_folders": "rlhf.adapters.extrapolation",
    "generalised_advantages": "policy.update.advantages",
    "gold_score": "rlhf.data.checks",
    "kl_bound": "reward.evaluation.winrate",
    "kl_loss": "policy.update.losses",
    "kl_of_answers": "policy.update.losses",
    "kl_of_tokens": "policy.update.losses",
    "leave_one_out": "policy.update.advantages",
    "load_config": "rlhf.config.load",
    "load_preferences": "rlhf.data.load",
    "load_prompts": "rlhf.data.load",
    "load_ratings": "rlhf.data.load",
    "regression": "reward.losses",
    "reinforce": "policy.update.losses",
    "train_reward": "reward.training.recipe",
}

# A type checker reads the imports above; at run time the names are loaded when they are first used.
__all__ = [
    "DataSource",
    "Message",
    "PolicyConfig",
    "Preference",
    "Prompt",
    "Rating",
    "RewardConfig",
    "RlhfError",
    "Score",
    "Scorer",
    "SharedBase",
    "align_policy",
    "best_of_curve",
    "bradley_terry",
    "compare_systems",
    "extrapolate_folders",
    "generalised_advantages",
    "gold_score",
    "kl_bound",
    "kl_loss",
    "kl_of_answers",
    "kl_of_tokens",
    "leave_one_out",
    "load_config",
    "load_preferences",
    "load_prompts",
    "load_ratings",
    "regression",
    "reinforce",
    "train_reward",
]


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
