"""Reward against KL: the reward of each algorithm at equal KL to the reference.

A run's path is its smoothed reward over its smoothed KL, by update, on training prompts. Its end is its
evaluation on held-out prompts. Runs form a group if their configs differ only in seed or number of steps.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.core.errors import DataError
from rlhf.core.statistics import mean_interval
from rlhf.report.drawing.scales import round_ticks
from rlhf.report.drawing.series import SMOOTH_FROM, running_mean
from rlhf.report.files import RunFiles, read_run
from rlhf.report.numbers import finite
from rlhf.report.page import flat
from rlhf.runs.folder import MAY_CHANGE

KL = "kl/sum"
QUANTITIES = {"reward": "reward/mean", "held_out": "reward/held_out", "gold": "gold/mean"}
"""Quantities drawn against the KL: name in eval.json -> name in metrics.jsonl."""
NOT_COMPARED = (*MAY_CHANGE, "seed", "evaluation.*")
"""Config keys in which the runs of a group may differ."""
BEST_OF, LIMIT = "best of n", "limit"

Curve = list[tuple[float, float]]
"""(KL, value) by update."""


@dataclass(frozen=True, slots=True)
class Track:
    """One run: its path by quantity, and its end on held-out prompts.

    Attributes:
        end: {"before", "after", "ci95" of the difference} by quantity, `kl` and `length`; empty without an
            evaluation.
        stopped: why the run ended early, as a sentence; or "".
    """

    run: str
    group: str
    seed: str
    updates: int
    paths: Mapping[str, Curve]
    end: Mapping[str, Mapping[str, Any]]
    stopped: str

    def at(self, quantity: str, kl: float) -> float | None:
        """The quantity where the run first reached this KL; None if it never did."""
        return first_reached(self.paths.get(quantity, []), kl)


def first_reached(path: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The value where a path first reaches a KL, interpolated between updates.

    None if the path starts above this KL or never reaches it. Later crossings do not count.
    """
    if not path or path[0][0] > kl:
        return None
    if path[0][0] == kl:
        return path[0][1]
    for (low, before), (high, after) in pairwise(path):
        if high >= kl:
            return before + (after - before) * (kl - low) / (high - low)
    return None


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """The runs, in the given order.

    Raises:
        DataError: a folder is not a policy run.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.kind != "policy":
            raise DataError(
                f"{run.path} is not the run of an RL algorithm.",
                allowed="folders of `rlhf align-policy` runs",
            )
    return runs


def tracks_of(runs: Sequence[RunFiles]) -> list[Track]:
    """The paths and ends of the runs, in the given order.

    Raises:
        DataError: a run has no KL and reward yet.
    """
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


def smoothed(run: RunFiles, metric: str) -> Curve:
    """The path of a metric over the KL: running means of both over the updates that have both."""
    values, kls = dict(run.values(metric)), dict(run.values(KL))
    steps = [step for step in kls if step in values]
    xs, ys = [kls[step] for step in steps], [values[step] for step in steps]
    if len(steps) >= SMOOTH_FROM:
        xs, ys = running_mean(xs), running_mean(ys)
    return list(zip(xs, ys, strict=True))


def _end(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    figures = {}
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    for name in (*QUANTITIES, "kl", "length"):
        first, last = finite(before.get(name)), finite(after.get(name))
        if first is not None and last is not None:
            interval = ((evaluation.get("difference") or {}).get(name) or {}).get("ci95")
            figures[name] = {"before": first, "after": last, "ci95": interval}
    return figures if {"kl", "reward"} <= set(figures) else {}


def groups_of(runs: Sequence[RunFiles]) -> list[str]:
    """The name of each run's group: algorithm, KL penalty, and the other keys in which groups differ."""
    settings = [
        {
            key: value
            for key, value in flat(run.config)
            if not any(fnmatch.fnmatchcase(key, pattern) for pattern in NOT_COMPARED)
        }
        for run in runs
    ]
    names = [_algorithm(run.config) if run.config else run.path.name for run in runs]
    groups = []
    for name, values in zip(names, settings, strict=True):
        namesakes = [other for other, called in zip(settings, names, strict=True) if called == name]
        differing = sorted(
            key for key in set().union(*namesakes) if len({other.get(key) for other in namesakes}) > 1
        )
        groups.append(", ".join([name, *(f"{key}={values.get(key, 'absent')}" for key in differing)]))
    return groups


def _algorithm(config: Mapping[str, Any]) -> str:
    algorithm = config.get("algorithm") or {}
    kl = algorithm.get("kl") or {}
    name = str(algorithm.get("name", "")) + (" (compat)" if algorithm.get("compat") else "")
    steered = f", target {kl['target']:g}" if finite(kl.get("target")) is not None else ""
    return f"{name}, KL {kl.get('coefficient')} x {kl.get('reduction')} {kl.get('estimator')}{steered}"


def levels_of(tracks: Sequence[Track]) -> list[float]:
    """Round KL values up to the largest that two groups reach, or the only group."""
    furthest: dict[str, float] = {}
    for track in tracks:
        reached = max(kl for kl, _ in track.paths["reward"])
        furthest[track.group] = max(reached, furthest.get(track.group, 0.0))
    highest = sorted(furthest.values())[-2:][0]
    return [level for level in round_ticks(0.0, highest, 8) if 0 < level <= highest] if highest > 0 else []


def at_equal_kl(
    tracks: Sequence[Track], curve: Sequence[Mapping[str, Any]], quantity: str, levels: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """By group and KL: `{"kl", "mean", "ci95" over seeds, "values", "of"}`; `mean` is None where no run
    reached it.

    `best of n` is the baseline at the bound of its KL, on the prompts of its own evaluation; `limit` the
    highest reward of any policy there, see `reward.evaluation.winrate.reward_limit`.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for group in dict.fromkeys(track.group for track in tracks):
        members = [track for track in tracks if track.group == group]
        if not any(quantity in track.paths for track in members):
            continue
        table[group] = [
            _over_seeds(level, [track.at(quantity, level) for track in members]) for level in levels
        ]
    points = [(point["kl_bound"], point[quantity]["mean"]) for point in curve if quantity in point]
    if points:
        table[BEST_OF] = [_over_seeds(level, [first_reached(points, level)]) for level in levels]
    if quantity == "reward" and limits_of(curve):
        table[LIMIT] = [_over_seeds(level, [limit_at(curve, level)]) for level in levels]
    return table


def limits_of(curve: Sequence[Mapping[str, Any]]) -> Curve:
    """The limit of the reward over the square root of the KL, in which it is linear."""
    return [
        (math.sqrt(point["kl_bound"]), point["limit"]) for point in curve if point.get("limit") is not None
    ]


def limit_at(curve: Sequence[Mapping[str, Any]], kl: float) -> float | None:
    """The limit of the reward at a KL; None beyond the largest n."""
    return first_reached(limits_of(curve), math.sqrt(kl))


def _over_seeds(kl: float, values: Iterable[float | None]) -> dict[str, Any]:
    of_seeds = list(values)
    known = [value for value in of_seeds if value is not None]
    return {
        "kl": kl,
        "mean": fmean(known) if known else None,
        "ci95": mean_interval(known),
        "values": known,
        "of": len(of_seeds),
    }


def ends(tracks: Sequence[Track], curve: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By group, the held-out figures and their gains: mean and interval over seeds.

    `best_of_n` and `limit` are the reward of the best-of-n baseline and that of the best policy at the
    group's mean KL.
    """
    by_group = {}
    for group in dict.fromkeys(track.group for track in tracks):
        members = [track for track in tracks if track.group == group and track.end]
        if not members:
            continue
        names = [name for name in members[0].end if all(name in track.end for track in members)]
        figures: dict[str, Any] = {
            name: _summary([track.end[name]["after"] for track in members]) for name in names
        }
        figures |= {
            f"{name}_gain": _summary(
                [track.end[name]["after"] - track.end[name]["before"] for track in members]
            )
            for name in names
            if name in QUANTITIES
        }
        points = [(point["kl_bound"], point["reward"]["mean"]) for point in curve]
        figures["best_of_n"] = first_reached(points, figures["kl"]["mean"])
        figures["limit"] = limit_at(curve, max(0.0, figures["kl"]["mean"]))
        by_group[group] = {"runs": len(members), **figures}
    return by_group


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "ci95": mean_interval(values), "values": list(values)}


def summarise(
    tracks: Sequence[Track],
    curve: Sequence[Mapping[str, Any]],
    levels: Sequence[float] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Content of frontier.json: runs with paths and ends, groups at equal KL and at their ends, and notes."""
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
        "notes": [*notes, *_notes(tracks)],
    }


def _notes(tracks: Sequence[Track]) -> list[str]:
    lines = [f"{track.run}: {track.stopped}" for track in tracks if track.stopped]
    lines += [f"{track.run} has no evaluation yet: it has no end." for track in tracks if not track.end]
    seeds: dict[tuple[str, str], list[str]] = {}
    for track in tracks:
        seeds.setdefault((track.group, track.seed), []).append(track.run)
    lines += [
        f"{' and '.join(runs)} have the same config and the same seed {seed}: they count as two."
        for (_, seed), runs in seeds.items()
        if len(runs) > 1
    ]
    return lines
