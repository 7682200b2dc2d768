"""Rewards by a Python function, called as TRL calls one; and by the check that a prompt carries.

    f(prompts=[messages, ...], completions=[[{"role": "assistant", "content": answer}], ...], completion_ids=[ids, ...],
      source=[name, ...], check=[check or None, ...]) -> [number or None, ...]

One of each for every answer, by keyword, so that a function takes what it needs and leaves the rest to `**kwargs`. TRL's own
`trainer_state`, `log_extra` and `log_metric` are not given.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policy.rewards.protocol import Missing
from rlhf.core.errors import ConfigError, RewardError, did_you_mean
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import gold_score

RewardFunction = Callable[..., Sequence[Any]]


class FunctionReward:
    """Asks a user's function.

    Args:
        name: of the function, for people.
    """

    def __init__(self, function: RewardFunction, name: str) -> None:
        self.function, self.name = function, name

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """What the function returns; None and numbers that are not finite are missing.

        Raises:
            RewardError: it failed, or did not return a number or None for each answer.
        """
        try:
            given = list(self.function(**arguments_of(prompts, rollouts)))
        except Exception as error:  # the user's own code, told with its place
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise RewardError(
                f"The reward function {self.name} failed at {last.filename}:{last.lineno}: {type(error).__name__}: {error}",
                fix="mend the function, then go on with --resume",
            ) from error
        if len(given) != len(rollouts):
            raise RewardError(
                f"The reward function {self.name} returned {len(given)} rewards for {len(rollouts)} answers.",
                allowed="a list with a number or None for each answer, in their order",
            )
        return [self._number(value) for value in given]

    def _number(self, value: Any) -> float | Missing:
        if value is None:
            return Missing("it returned None")
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        return number if math.isfinite(number) else Missing(f"it returned {value!r:.60}")


class GoldReward:
    """The gold score of prompts whose answers can be checked by code."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """In 0..1; missing where a prompt has no check."""
        return [
            Missing("the prompt has no check")
            if prompt.check is None
            else gold_score(prompt.check, rollout.text)
            for prompt, rollout in zip(prompts, rollouts, strict=True)
        ]


def arguments_of(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Mapping[str, list[Any]]:
    """What a function is called with; see above."""
    return {
        "prompts": [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in prompts],
        "completions": [[{"role": "assistant", "content": rollout.text}] for rollout in rollouts],
        "completion_ids": [list(rollout.completion_ids) for rollout in rollouts],
        "source": [prompt.source for prompt in prompts],
        "check": [prompt.check for prompt in prompts],
    }


def load_function(place: str) -> RewardFunction:
    """The function at `FILE.py:NAME` or `MODULE:NAME`.

    Raises:
        ConfigError: there is no such file, module or function, or it cannot be called as a reward function is.
    """
    where, _, name = place.rpartition(":")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # whatever the user's own file does when it is read
        raise ConfigError(
            f"The reward function {place} cannot be loaded: {type(error).__name__}: {error}",
            allowed="FILE.py:NAME with a path from here, or MODULE:NAME of an installed package",
            fix=f"try it: python {where}" if where.endswith(".py") else f"try it: python -c 'import {where}'",
        ) from error
    function = getattr(module, name, None)
    if function is None:
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ConfigError(
            f"{where} has no function {name!r}.{did_you_mean(name, known)}", allowed=", ".join(known)
        )
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"{place} is {'async' if callable(function) else 'no function'}.",
            allowed="def NAME(prompts, completions, **kwargs) -> list of numbers",
        )
    return function  # type: ignore[no-any-return]


def _from_file(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file.absolute()}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
