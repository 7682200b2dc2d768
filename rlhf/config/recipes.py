"""The reward models of HelpSteer2-Preference (arXiv 2410.01257, Table 2) by name: `recipe: bt-margin` is a
whole run.

A config with a recipe has settings (epochs, batch size, optimizer, ...) for stages of fixed names. The recipe
selects the stages it needs and sets their losses, the head's outputs and ExPO. Keys that a recipe sets may be
left out or have the same value, so that the resolved config of a run gives the same run again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlhf.config.attributes import REWARD_ALONE
from rlhf.core.errors import did_you_mean
from rlhf.core.records import HELPSTEER_ATTRIBUTES

RecipeName = Literal[
    "regression-attributes",
    "regression-helpfulness",
    "bt-regular",
    "bt-margin",
    "bt-scaled",
    "helpfulness-bt-regular",
    "helpfulness-bt-margin",
    "helpfulness-bt-scaled",
    "helpfulness-bt-scaled-expo",
    "hybrid",
    "helpsteer3",
]

REGRESSION, PREFERENCE, HYBRID = "regression", "preference", "hybrid"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings that a recipe fixes."""

    stages: tuple[str, ...]
    loss: str | None = None
    """The form of the Bradley-Terry loss; None without one."""
    attributes: tuple[str, ...] = REWARD_ALONE
    expo: bool = False


BOTH = (REGRESSION, PREFERENCE)
RECIPES: dict[str, Recipe] = {
    "regression-attributes": Recipe((REGRESSION,), attributes=HELPSTEER_ATTRIBUTES),
    "regression-helpfulness": Recipe((REGRESSION,)),
    "bt-regular": Recipe((PREFERENCE,), "regular"),
    "bt-margin": Recipe((PREFERENCE,), "margin"),
    "bt-scaled": Recipe((PREFERENCE,), "scaled"),
    "helpfulness-bt-regular": Recipe(BOTH, "regular"),
    "helpfulness-bt-margin": Recipe(BOTH, "margin"),
    "helpfulness-bt-scaled": Recipe(BOTH, "scaled"),
    "helpfulness-bt-scaled-expo": Recipe(BOTH, "scaled", expo=True),
    "hybrid": Recipe((HYBRID,), "scaled", attributes=HELPSTEER_ATTRIBUTES),  # ours: both losses at once
    # HelpSteer3 (arXiv 2505.11475) on the same stages: ratings of HelpSteer2 or words of feedback, then its
    # preferences.
    "helpsteer3": Recipe(BOTH, "scaled", expo=True),
}

TERMS = {
    REGRESSION: ("regression_weight",),
    PREFERENCE: ("preference_weight",),
    HYBRID: ("regression_weight", "preference_weight"),
}
"""The loss weights that are above 0 in a stage of this name; the other is 0."""

# NeMo-Aligner: docs/user-guide/steerlm.rst, lines 225-285 (batch in responses there: 128 are 64 pairs).
SETTINGS: dict[str, dict[str, int]] = {
    REGRESSION: {"epochs": 2, "batch_size": 128},
    PREFERENCE: {"epochs": 1, "batch_size": 64},
    HYBRID: {"epochs": 1, "batch_size": 64},
}
LEARNING_RATES = {REGRESSION: 2e-5, PREFERENCE: 1e-5, HYBRID: 1e-5}
"""Defaults of a stage. Ten times NeMo-Aligner's, which train all weights and are far too low for an adapter:
the factor is our choice, not the paper's."""


def stage_names(recipe: str, *, started: bool) -> tuple[str, ...]:
    """The stages of a recipe, in order; with `start`, that model replaces the regression stage before the
    preferences."""
    names = RECIPES[recipe].stages
    return names[1:] if started and len(names) > 1 else names


def fill(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all settings of its recipe filled in; unchanged without a recipe, or if already filled.

    Stages keep their index, so that errors still point to the right line of the file; stages that the recipe
    does not need are kept too (see `stage_names`).

    Raises:
        ValueError: unknown recipe, unknown stage, or a key that contradicts the recipe.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    name = filled.get("recipe")
    if name is None:
        return filled
    if name not in RECIPES:
        hint = did_you_mean(str(name), RECIPES)
        raise ValueError(f"recipe: found {name!r}.{hint} Allowed: {', '.join(get_args(RecipeName))}")
    recipe = RECIPES[name]
    _decide(filled, "attributes", list(recipe.attributes), name)
    stages = filled.setdefault("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return filled  # the schema reports the error
    _name_hybrid(stages, recipe)
    for stage in stages:
        if str(stage.get("name")) not in TERMS:
            raise ValueError(
                f"stages: found the name {stage.get('name')!r}; with a recipe a stage is one of "
                f"{', '.join(TERMS)}"
            )
    present = {stage["name"] for stage in stages}
    if len(present) != len(stages):
        raise ValueError("stages: two stages have the same name; rename or remove one of them")
    stages += [_as_hybrid(stages, missing) for missing in recipe.stages if missing not in present]
    for stage in stages:
        _fill_stage(stage, recipe, name)
    if not recipe.expo:
        filled["expo"] = None
    elif isinstance(expo := filled.get("expo") or {}, dict):
        weak = "start" if filled.get("start") is not None else REGRESSION
        _decide(expo, "weak", weak, name)
        _decide(expo, "strong", PREFERENCE, name)
        filled["expo"] = expo
    return filled


def _as_hybrid(stages: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A stage that the file does not have, with the settings of its hybrid stage: learning rates suit that
    adapter."""
    hybrid = next((stage for stage in stages if stage["name"] == HYBRID), {})
    losses = (*TERMS[HYBRID], "preference_loss")
    return {**{key: copy.deepcopy(value) for key, value in hybrid.items() if key not in losses}, "name": name}


def _name_hybrid(stages: list[dict[str, Any]], recipe: Recipe) -> None:
    """Use the settings of the preference stage for a hybrid stage that the file does not have."""
    if HYBRID in recipe.stages and all(stage.get("name") != HYBRID for stage in stages):
        for stage in stages:
            if stage.get("name") == PREFERENCE:
                stage["name"] = HYBRID


def _fill_stage(stage: dict[str, Any], recipe: Recipe, name: str) -> None:
    terms = TERMS[stage["name"]]
    for weight in TERMS[HYBRID]:
        value = stage.setdefault(weight, 1.0 if weight in terms else 0.0)
        if (value == 0) == (weight in terms):
            allowed = "above 0" if weight in terms else "0"
            raise ValueError(
                f"stage {stage['name']!r}: found {weight} {value}; with a recipe it must be {allowed}, or "
                "left out"
            )
    if stage["name"] in recipe.stages and "preference_weight" in terms:
        _decide(stage, "preference_loss", recipe.loss, name)
    for key, default in SETTINGS[stage["name"]].items():
        stage.setdefault(key, default)
    if isinstance(optimizer := stage.setdefault("optimizer", {}), dict):
        optimizer.setdefault("learning_rate", LEARNING_RATES[stage["name"]])


def _decide(config: dict[str, Any], key: str, value: Any, recipe: str) -> None:
    present = config.setdefault(key, value)
    if present != value:
        raise ValueError(
            f"{key}: found {present!r}, but recipe {recipe!r} sets it to {value!r}; remove {key}, or the "
            "recipe"
        )
