"""The content of table.json: every row as trained and at equal KL, with intervals over seeds and prompts.

Shapes: S seeds, P prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.table.equal_kl import Point, as_point, at_kl
from policy.table.evaluate import evaluation_file
from policy.table.rows import BASE, BEST_OF, CLAIMS, ROWS, TRAINED
from rlhf.config.policy_table import TableEvaluation
from rlhf.core.statistics import Floats, claim_verdict, grid_mean_interval

UNBOUNDED = (-math.inf, math.inf)
Paths = Mapping[str, Sequence[Sequence[Point]]]
"""The points of each row by seed; the base is the first point of every row."""


def read_paths(folder: Path, seeds: Sequence[int]) -> dict[str, list[list[Point]]]:
    """The points of every row, from the evaluations of a table's seeds."""
    paths: dict[str, list[list[Point]]] = {name: [] for name in ROWS if name != BASE}
    for seed in seeds:
        where = folder / f"seed-{seed}"
        best_of = _points(evaluation_file(where, BASE))
        base = Point(0.0, 0.0, best_of[0].figures)
        paths[BEST_OF].append([base, *best_of[1:]])
        for row in TRAINED:
            paths[row].append([base, *_points(evaluation_file(where, row))])
    return paths


def _points(file: Path) -> list[Point]:
    content = json.loads(file.read_text(encoding="utf-8"))
    return [as_point(point["scale"], point["kl"], point["figures"]) for point in content["points"]]


def summarise(paths: Paths, seeds: Sequence[int], settings: TableEvaluation) -> dict[str, Any]:
    """Every row's figures as trained and at equal KL, the verdicts on the paper's claims, and the paths."""
    base = [by_seed[0] for by_seed in paths[BEST_OF]]
    trained: dict[str, list[Point | None]] = {BASE: list(base)}
    equal: dict[str, list[Point | None]] = {BASE: list(base)}
    for row, by_seed in paths.items():
        equal[row] = [at_kl(points, settings.kl, tolerance=settings.tolerance) for points in by_seed]
        # The first point is the base, the second the policy as trained; of best of n the last, the largest n.
        trained[row] = [points[-1] if row == BEST_OF else points[1] for points in by_seed]
    return {
        "seeds": list(seeds),
        "prompts": len(base[0].figures["win"]),
        "samples": settings.samples,
        "best_of": settings.best_of,
        "kl": settings.kl,
        "equal_kl": {row: _row(equal[row], base) for row in ROWS},
        "trained": {row: _row(trained[row], base) for row in ROWS},
        "claims": [
            {
                "sentence": claim.sentence,
                "paper": claim.paper,
                **{
                    name: compare(equal[claim.better], equal[claim.worse], name)
                    for name in ("win", "held_out")
                },
            }
            for claim in CLAIMS
        ],
        "paths": {
            row: [
                [
                    {"scale": point.scale, "kl": point.kl}
                    | {name: float(values.mean()) for name, values in point.figures.items() if name != "kl"}
                    for point in sorted(points, key=lambda point: point.kl)
                ]
                for points in by_seed
            ]
            for row, by_seed in paths.items()
        },
    }


def _row(points: Sequence[Point | None], base: Sequence[Point]) -> dict[str, Any]:
    """Means of the seeds that have a point, and differences to the base."""
    reached = [(point, before) for point, before in zip(points, base, strict=True) if point is not None]
    if not reached:
        return {"reached": 0}
    names = [name for name in reached[0][0].figures if name != "kl"]
    figures = {name: _stack([point for point, _ in reached], name) for name in names}
    before = {name: _stack([before for _, before in reached], name) for name in names}
    return {
        "reached": len(reached),
        "scale": [point.scale for point, _ in reached],
        "kl": float(np.mean([point.kl for point, _ in reached])),
        **{
            name: interval_of(values_SP, bounds=(0.0, 1.0) if name == "win" else UNBOUNDED)
            for name, values_SP in figures.items()
        },
        "gain": {name: interval_of(figures[name] - before[name]) for name in names if name != "win"},
    }


def compare(
    better: Sequence[Point | None], worse: Sequence[Point | None], name: str
) -> dict[str, Any] | None:
    """The paired difference of two rows over the seeds that both reached, and whether the first is better;
    None without such seeds."""
    pairs = [(a, b) for a, b in zip(better, worse, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    difference_SP = _stack([a for a, _ in pairs], name) - _stack([b for _, b in pairs], name)
    difference = interval_of(difference_SP, bounds=(-1.0, 1.0) if name == "win" else UNBOUNDED)
    return {**difference, "seeds": len(pairs), "verdict": claim_verdict(*difference["ci95"])}


def interval_of(values_SP: Floats, bounds: tuple[float, float] = UNBOUNDED) -> dict[str, Any]:
    """Mean, its interval over seeds and prompts, and the mean of each seed."""
    return {
        "mean": float(values_SP.mean()),
        "ci95": grid_mean_interval(values_SP, bounds=bounds),
        "seeds": [float(value) for value in values_SP.mean(axis=1)],
    }


def _stack(points: Sequence[Point], name: str) -> Floats:
    return np.stack([point.figures[name] for point in points])
