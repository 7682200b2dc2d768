"""The reward models of HelpSteer2-Preference (arXiv 2410.01257, Table 2) by name: `recipe: bt-margin` is a whole run.

A file with a recipe gives settings (epochs, batch size, optimizer, …) for stages of fixed names; the recipe takes the
ones it needs, and decides their losses, the head's outputs and whether ExPO follows. What a recipe decides may be left out
or say the same, so that the resolved config of a run is the config of the same run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
REWARD_ALONE = ("helpfulness",)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe decides."""

    stages: tuple[str, ...]
    loss: str | None = None
    """The form of Bradley-Terry, where there is any."""
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
    # HelpSteer3 (arXiv 2505.11475) on the same stages: ratings of HelpSteer2 or words of feedback, then its preferences.
    "helpsteer3": Recipe(BOTH, "scaled", expo=True),
}

TERMS = {
    REGRESSION: ("regression_weight",),
    PREFERENCE: ("preference_weight",),
    HYBRID: ("regression_weight", "preference_weight"),
}
"""The weights that are above 0 in a stage of this name; the other one is 0."""

# NeMo-Aligner: docs/user-guide/steerlm.rst, lines 225-285 (batch in responses there: 128 are 64 pairs).
SETTINGS: dict[str, dict[str, Any]] = {
    REGRESSION: {"epochs": 2, "batch_size": 128, "optimizer": {"learning_rate": 2e-6}},
    PREFERENCE: {"epochs": 1, "batch_size": 64, "optimizer": {"learning_rate": 1e-6}},
    HYBRID: {"epochs": 1, "batch_size": 64, "optimizer": {"learning_rate": 1e-6}},
}
"""What a stage has where the file says nothing: that recipe is for full fine-tuning."""


def stage_names(recipe: str, *, started: bool) -> tuple[str, ...]:
    """The stages of a recipe, in order; a model to start from stands for the regression before the preferences."""
    names = RECIPES[recipe].stages
    return names[1:] if started and len(names) > 1 else names


def fill(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with everything its recipe decides written out; without a recipe, or filled before, it stays as it is.

    Stages keep their places, so that a mistake in one is still found where it stands in the file; those that the
    recipe does not need are still there (`stage_names` says which it does).

    Raises:
        ValueError: no such recipe, a stage it does not know, or a key that contradicts it.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    name = filled.get("recipe")
    if name is None:
        return filled
    if name not in RECIPES:
        hint = did_you_mean(str(name), RECIPES)
        raise ValueError(f"recipe: found {name!r}.{hint} There are {', '.join(get_args(RecipeName))}")
    recipe = RECIPES[name]
    _decide(filled, "attributes", list(recipe.attributes), name)
    stages = filled.setdefault("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return filled  # the schema says what is wrong
    _name_hybrid(stages, recipe)
    for stage in stages:
        if str(stage.get("name")) not in TERMS:
            raise ValueError(
                f"a recipe knows the stages {', '.join(TERMS)}, and here is {stage.get('name')!r}"
            )
    there = {stage["name"] for stage in stages}
    if len(there) != len(stages):
        raise ValueError("two stages have the same name")
    stages += [_as_hybrid(stages, wanted) for wanted in recipe.stages if wanted not in there]
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
    """A stage that the file does not have: by the settings of its hybrid one, whose rates fit what is trained."""
    hybrid = next((stage for stage in stages if stage["name"] == HYBRID), {})
    own = (*TERMS[HYBRID], "preference_loss")
    return {**{key: copy.deepcopy(value) for key, value in hybrid.items() if key not in own}, "name": name}


def _name_hybrid(stages: list[dict[str, Any]], recipe: Recipe) -> None:
    """Without settings of its own, the hybrid stage takes those of the preferences."""
    if HYBRID in recipe.stages and all(stage.get("name") != HYBRID for stage in stages):
        for stage in stages:
            if stage.get("name") == PREFERENCE:
                stage["name"] = HYBRID


def _fill_stage(stage: dict[str, Any], recipe: Recipe, name: str) -> None:
    terms = TERMS[stage["name"]]
    for weight in TERMS[HYBRID]:
        given = stage.setdefault(weight, 1.0 if weight in terms else 0.0)
        if (given == 0) == (weight in terms):
            wanted = "above 0" if weight in terms else "0"
            raise ValueError(
                f"stage {stage['name']!r} of a recipe has {weight} {wanted}, and here is {given}"
            )
    if stage["name"] in recipe.stages and "preference_weight" in terms:
        _decide(stage, "preference_loss", recipe.loss, name)
    for key, value in SETTINGS[stage["name"]].items():
        if isinstance(value, dict):
            inner = stage.setdefault(key, {})
            if isinstance(inner, dict):
                for below, default in value.items():
                    inner.setdefault(below, default)
        else:
            stage.setdefault(key, value)


def _decide(config: dict[str, Any], key: str, value: Any, recipe: str) -> None:
    given = config.setdefault(key, value)
    if given != value:
        raise ValueError(
            f"recipe {recipe!r} decides {key}: it is {value!r}, and here is {given!r}; leave {key} out, or the recipe"
        )
