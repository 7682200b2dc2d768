"""Reward against KL, run beside run: what each algorithm gets for the same distance from the reference.

A run's path is its smoothed reward over its smoothed KL, update by update, on the prompts it practises on; its end is the
evaluation on held-out prompts. Runs whose configs differ in the seed alone (or in how far they go) are one group.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.core.errors import DataError
from rlhf.core.statistics import mean_interval
from rlhf.report.files import RunFiles, read_run
from rlhf.report.numbers import finite
from rlhf.report.page import flat
from rlhf.report.scales import round_ticks
from rlhf.report.series import SMOOTH_FROM, running_mean
from rlhf.runs.folder import MAY_CHANGE

KL = "kl/sum"
QUANTITIES = {"reward": "reward/mean", "held_out": "reward/held_out", "gold": "gold/mean"}
"""What is drawn against the KL, and its name in metrics.jsonl; eval.json has the short name."""
NO_PART = (*MAY_CHANGE, "seed", "evaluation.*")
"""Config keys in which the runs of a group may differ."""

Path_ = list[tuple[float, float]]
"""(KL, value), update by update."""


@dataclass(frozen=True, slots=True)
class Track:
    """One run: its path by quantity, and its end on held-out prompts.

    Attributes:
        end: by quantity, and `kl` and `length`: {"before", "after", "ci95" of the difference}; empty where a run has no evaluation.
        stopped: why the run ended early, in a sentence; or "".
    """

    run: str
    group: str
    seed: str
    updates: int
    paths: Mapping[str, Path_]
    end: Mapping[str, Mapping[str, Any]]
    stopped: str

    def at(self, quantity: str, kl: float) -> float | None:
        """The quantity where the run first was this far from the reference; None where it never was."""
        return first_reached(self.paths.get(quantity, []), kl)


def first_reached(path: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The value where a path first reaches a KL, linearly between two updates; None where it does not, or begins beyond it.

    A path may turn back: later visits to the same KL do not count.
    """
    if not path or path[0][0] > kl:
        return None
    if path[0][0] == kl:
        return path[0][1]
    for (low, before), (high, after) in pairwise(path):
        if high >= kl:
            return before + (after - before) * (kl - low) / (high - low)
    return None


def read_tracks(folders: Sequence[Path]) -> list[Track]:
    """The runs, in their order.

    Raises:
        DataError: a folder is no policy's run, or has no figures of KL and reward yet.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.kind != "policy":
            raise DataError(
                f"{run.path} is the run of a reward model.", allowed="folders of `rlhf align-policy` runs"
            )
    return [_track(run, group) for run, group in zip(runs, groups_of(runs), strict=True)]


def _track(run: RunFiles, group: str) -> Track:
    paths = {name: smoothed(run, metric) for name, metric in QUANTITIES.items()}
    if not paths["reward"]:
        logged = sorted({name for row in run.metrics for name in row} - {"step"})
        raise DataError(
            f"{run.path}/metrics.jsonl has no update with both {KL} and {QUANTITIES['reward']}; it has: "
            f"{', '.join(logged) or 'nothing'}.",
            allowed="the folder of an `rlhf align-policy` run that made an update",
        )
    stopped = run.evaluation.get("stopped")
    return Track(
        run=str(run.path),
        group=group,
        seed=str(run.config.get("seed", "")),
        updates=run.last_step,
        paths={name: path for name, path in paths.items() if path},
        end=_end(run.evaluation),
        stopped=str(stopped.get("sentence", "")) if isinstance(stopped, Mapping) else "",
    )


def smoothed(run: RunFiles, metric: str) -> Path_:
    """The path of a metric over the KL: running means of both over the updates that have both."""
    values, kls = dict(run.values(metric)), dict(run.values(KL))
    steps = [step for step in kls if step in values]
    xs, ys = [kls[step] for step in steps], [values[step] for step in steps]
    if len(steps) >= SMOOTH_FROM:
        xs, ys = running_mean(xs), running_mean(ys)
    return list(zip(xs, ys, strict=True))


def _end(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    for name in (*QUANTITIES, "kl", "length"):
        first, last = finite(before.get(name)), finite(after.get(name))
        if first is not None and last is not None:
            told = ((evaluation.get("difference") or {}).get(name) or {}).get("ci95")
            found[name] = {"before": first, "after": last, "ci95": told}
    return found if {"kl", "reward"} <= set(found) else {}


def groups_of(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run's group: algorithm and KL penalty, and what else tells groups apart."""
    settings = [
        {
            key: value
            for key, value in flat(run.config)
            if not any(fnmatch.fnmatchcase(key, one) for one in NO_PART)
        }
        for run in runs
    ]
    names = [_algorithm(run.config) if run.config else run.path.name for run in runs]
    said = []
    for name, own in zip(names, settings, strict=True):
        namesakes = [other for other, called in zip(settings, names, strict=True) if called == name]
        differing = sorted(
            key for key in set().union(*namesakes) if len({one.get(key) for one in namesakes}) > 1
        )
        said.append(", ".join([name, *(f"{key}={own.get(key, 'absent')}" for key in differing)]))
    return said


def _algorithm(config: Mapping[str, Any]) -> str:
    algorithm = config.get("algorithm") or {}
    kl = algorithm.get("kl") or {}
    name = str(algorithm.get("name", "")) + (" (compat)" if algorithm.get("compat") else "")
    steered = f", target {kl['target']:g}" if finite(kl.get("target")) is not None else ""
    return f"{name}, KL {kl.get('coefficient')} x {kl.get('reduction')} {kl.get('estimator')}{steered}"


def read_best_of(file: Path) -> list[dict[str, Any]]:
    """The best-of-n curve of a `rlhf compare --best-of` result.

    Raises:
        DataError: no such file, or it holds no such curve.
    """
    try:
        curve = json.loads(file.read_text(encoding="utf-8"))["best_of"]
        return [{**one, "n": int(one["n"]), "kl_bound": float(one["kl_bound"])} for one in curve]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} holds no best-of-n curve ({type(error).__name__}: {error}).",
            allowed="compare.json in the --output of `rlhf compare ... --best-of 1,2,4,8,16`",
        ) from error


def levels_of(tracks: Sequence[Track]) -> list[float]:
    """Round KL values up to the furthest that two groups reach, or the only one."""
    furthest: dict[str, float] = {}
    for track in tracks:
        reached = max(kl for kl, _ in track.paths["reward"])
        furthest[track.group] = max(reached, furthest.get(track.group, 0.0))
    highest = sorted(furthest.values())[-2:][0]
    return [level for level in round_ticks(0.0, highest, 8) if 0 < level <= highest] if highest > 0 else []


def at_equal_kl(
    tracks: Sequence[Track], curve: Sequence[Mapping[str, Any]], quantity: str, levels: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """By group, what its runs have at each KL: `{"kl", "mean", "ci95" over seeds, "values", "of"}`, `mean` None where none got there.

    `best of n` is the yardstick at its KL bound, on the prompts it was measured on.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for group in dict.fromkeys(track.group for track in tracks):
        mine = [track for track in tracks if track.group == group]
        if not any(quantity in track.paths for track in mine):
            continue
        found[group] = [_over_seeds(level, [track.at(quantity, level) for track in mine]) for level in levels]
    points = [(one["kl_bound"], one[quantity]["mean"]) for one in curve if quantity in one]
    if points:
        found["best of n"] = [_over_seeds(level, [first_reached(points, level)]) for level in levels]
    return found


def _over_seeds(kl: float, values: Iterable[float | None]) -> dict[str, Any]:
    told = list(values)
    known = [value for value in told if value is not None]
    return {
        "kl": kl,
        "mean": fmean(known) if known else None,
        "ci95": mean_interval(known),
        "values": known,
        "of": len(told),
    }


def ends(tracks: Sequence[Track], curve: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By group, its runs' ends on held-out prompts: each figure's mean and interval over seeds, and the gains since before.

    `best_of_n` is the reward of the yardstick at the group's mean KL.
    """
    found = {}
    for group in dict.fromkeys(track.group for track in tracks):
        mine = [track for track in tracks if track.group == group and track.end]
        if not mine:
            continue
        names = [name for name in mine[0].end if all(name in track.end for track in mine)]
        told: dict[str, Any] = {
            name: _summary([track.end[name]["after"] for track in mine]) for name in names
        }
        told |= {
            f"{name}_gain": _summary([track.end[name]["after"] - track.end[name]["before"] for track in mine])
            for name in names
            if name in QUANTITIES
        }
        points = [(one["kl_bound"], one["reward"]["mean"]) for one in curve]
        told["best_of_n"] = first_reached(points, told["kl"]["mean"])
        found[group] = {"runs": len(mine), **told}
    return found


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "ci95": mean_interval(values), "values": list(values)}


def summarise(
    tracks: Sequence[Track], curve: Sequence[Mapping[str, Any]], levels: Sequence[float] | None = None
) -> dict[str, Any]:
    """frontier.json: the runs with their paths and ends, what groups have at equal KL, and their ends."""
    shown = sorted(set(levels)) if levels else levels_of(tracks)
    tables = {name: at_equal_kl(tracks, curve, name, shown) for name in QUANTITIES}
    present = {name for track in tracks for name in track.paths}
    return {
        "levels": shown,
        "at_equal_kl": {name: table for name, table in tables.items() if name in present},
        "ends": ends(tracks, curve),
        "best_of": list(curve),
        "runs": [
            {
                "run": track.run,
                "group": track.group,
                "seed": track.seed,
                "updates": track.updates,
                "stopped": track.stopped,
                "end": track.end,
                "paths": track.paths,
            }
            for track in tracks
        ],
        "notes": _notes(tracks),
    }


def _notes(tracks: Sequence[Track]) -> list[str]:
    said = [f"{track.run}: {track.stopped}" for track in tracks if track.stopped]
    said += [
        f"{track.run} has no evaluation yet: it is not among the ends." for track in tracks if not track.end
    ]
    seeds: dict[tuple[str, str], list[str]] = {}
    for track in tracks:
        seeds.setdefault((track.group, track.seed), []).append(track.run)
    said += [
        f"{' and '.join(runs)} have the same config and the same seed {seed}: they count as two."
        for (_, seed), runs in seeds.items()
        if len(runs) > 1
    ]
    return said
