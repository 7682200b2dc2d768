"""The best-of-n baseline of `rlhf frontier`, and whether it is one of the compared runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.rewards import KINDS
from rlhf.core.errors import DataError
from rlhf.report.files import RunFiles


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best-of-n curve of a `rlhf compare --best-of` result.

    Attributes:
        sampled: the model, or the file of answers, from whose answers the best were picked.
        reward: the reward model that picked them.
    """

    file: Path
    curve: Sequence[Mapping[str, Any]]
    sampled: str
    reward: str


def read_best_of(file: Path) -> BestOf:
    """The curve of a compare.json.

    Raises:
        DataError: the file does not exist, or has no such curve.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        curve = [
            {**point, "n": int(point["n"]), "kl_bound": float(point["kl_bound"])}
            for point in content["best_of"]
        ]
        return BestOf(file, curve, sampled=str(content["b"]), reward=str(content["reward"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} holds no best-of-n curve ({type(error).__name__}: {error}).",
            allowed="compare.json in the --output of `rlhf compare ... --best-of 1,2,4,8,16`",
        ) from error


def mismatches(best_of: BestOf, runs: Sequence[RunFiles]) -> list[str]:
    """A note for each reference and reward of the runs that is not the baseline's.

    The bound of the KL is to the sampled model, so it compares with a run only where that is the run's
    reference: `start`, or else the base. Names are compared, and paths once resolved.
    """
    references = dict.fromkeys(
        str(run.config.get("start") or run.config["model"]["base"])
        for run in runs
        if run.config.get("start") or (run.config.get("model") or {}).get("base")
    )
    lines = [
        f"{best_of.file}: the best of n are answers of {best_of.sampled}, but a run's reference is "
        f"{reference}. Their KLs are to different models, unless both are the same under two names."
        for reference in references
        if not _same(reference, best_of.sampled)
    ]
    rewards = dict.fromkeys(_reward(run.config["reward"]) for run in runs if run.config.get("reward"))
    lines += [
        f"{best_of.file}: the best of n were picked by {best_of.reward}, but a run's reward is {reward}. "
        "Rewards of two models do not compare, unless both are the same under two names."
        for reward in rewards
        if not _same(reward, best_of.reward)
    ]
    return lines


def _reward(value: Any) -> str:
    """The reward of a config: the folder of a reward model, or its sources with their weights."""
    if isinstance(value, str):
        return value
    texts = []
    for source in value:
        place = next(
            (source[kind] for kind in KINDS if isinstance(source.get(kind), str)), "a judge or ensemble"
        )
        weight = source.get("weight", 1.0)
        texts.append(place if weight == 1 else f"{weight:g} x {place}")
    return " + ".join(texts)


def _same(name: str, other: str) -> bool:
    return name == other or Path(name).resolve() == Path(other).resolve()
