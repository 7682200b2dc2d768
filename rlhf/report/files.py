"""Read a run folder, in which any file may be missing or cut off while the run is in progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf.core.errors import DataError
from rlhf.report.numbers import finite

RunKind = Literal["reward", "policy", "dpo"]
JsonObject = dict[str, Any]
FILES = ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "eval.json")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run folder; `notes` are sentences on what could not be read."""

    path: Path
    kind: RunKind
    config: JsonObject
    environment: JsonObject
    metrics: list[JsonObject]
    samples: dict[int, list[JsonObject]]
    evaluation: JsonObject
    drops: JsonObject
    expo: JsonObject = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def values(self, name: str) -> list[tuple[float, float]]:
        """The finite (step, value) pairs of one metric, in order of steps."""
        pairs = ((row["step"], finite(row.get(name))) for row in self.metrics)
        return [(step, value) for step, value in pairs if value is not None]

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last step that were logged: the common axis of all curves."""
        return (self.metrics[0]["step"], self.metrics[-1]["step"]) if self.metrics else (0.0, 1.0)

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 if there is none."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


def read_run(path: Path) -> RunFiles:
    """Read the files that exist.

    Raises:
        DataError: the folder does not exist, or has none of a run's files.
    """
    if not path.is_dir():
        raise DataError(
            f"{path} is not a folder.", allowed="the folder of a run", fix="rlhf report runs/NAME"
        )
    if not any((path / name).is_file() for name in FILES):
        raise DataError(
            f"{path} holds none of a run's files.",
            allowed=f"a folder with at least one of {', '.join(FILES)}",
            fix="give the folder that `output` names in the run's config, for example runs/demo/policy",
        )
    notes: list[str] = []
    config = _mapping(path / "config.yaml", notes)
    evaluation = _mapping(path / "eval.json", notes)
    for failure in evaluation.get("failures") or []:
        notes.append(f"After training, a step failed: {failure.get('step')}. {failure.get('reason')}")
    metrics = _metrics(path / "metrics.jsonl", notes)
    # drops.json counts the rows of training; eval.json, those of the benchmark.
    drops = _mapping(path / "drops.json", notes) or evaluation.get("drops")
    return RunFiles(
        path=path,
        kind=_kind(path, config, evaluation, metrics),
        config=config,
        environment=_mapping(path / "environment.json", notes),
        metrics=metrics,
        samples=_samples(path / "samples.jsonl", notes),
        evaluation=evaluation,
        drops=drops if isinstance(drops, dict) else {},
        expo=_mapping(path / "expo.json", notes),
        notes=notes,
    )


def _mapping(path: Path, notes: list[str]) -> JsonObject:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        loaded = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        notes.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return {}
    if isinstance(loaded, dict):
        return loaded
    notes.append(f"{path.name} holds a {type(loaded).__name__} where named values were expected.")
    return {}


def json_lines(path: Path, notes: list[str]) -> Iterator[JsonObject]:
    """The lines that are JSON objects with a step; the others are counted, with the first place."""
    bad: list[int] = []
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line) if line.strip() else None
                except json.JSONDecodeError:
                    row = line
                if isinstance(row, dict) and finite(row.get("step")) is not None:
                    yield row
                elif row is not None:
                    bad.append(number)
    if bad:
        lines = (
            "1 line could not be read and was"
            if len(bad) == 1
            else f"{len(bad)} lines could not be read and were"
        )
        notes.append(f"{lines} left out (first at {path.name}:{bad[0]}).")


def _metrics(path: Path, notes: list[str]) -> list[JsonObject]:
    """One row per step: lines of a step are merged, and later ones replace earlier ones."""
    steps: dict[float, JsonObject] = {}
    broken: dict[str, list[float]] = {}
    for row in json_lines(path, notes):
        steps.setdefault(row["step"], {}).update(row)
        for name, value in row.items():
            if value is None or (isinstance(value, float) and finite(value) is None):
                broken.setdefault(name, []).append(row["step"])
    for name, places in broken.items():
        times = "once" if len(places) == 1 else f"{len(places)} times"
        notes.append(f"{name} was not a finite number {times}, first at step {places[0]}.")
    return [steps[step] for step in sorted(steps)]


def _samples(path: Path, notes: list[str]) -> dict[int, list[JsonObject]]:
    """The answers of the first and the last step, as all of a long run would not fit on a page."""
    first: list[JsonObject] = []
    last: list[JsonObject] = []
    for row in json_lines(path, notes):
        if not first or row["step"] == first[0]["step"]:
            first.append(row)
        elif last and row["step"] == last[0]["step"]:
            last.append(row)
        else:
            last = [row]
    return {int(rows[0]["step"]): rows for rows in (first, last) if rows}


def _kind(path: Path, config: JsonObject, evaluation: JsonObject, metrics: list[JsonObject]) -> RunKind:
    """The command that wrote this folder, by its config, else its evaluation, else its metrics' names."""
    if "beta" in config:
        return "dpo"
    if "stages" in config or "reward" in config:
        return "reward" if "stages" in config else "policy"
    if evaluation:
        return "policy" if "before" in evaluation else "reward"
    names = set().union(*metrics) if metrics else set()
    policy = (path / "samples.jsonl").is_file() or any(name.startswith(("kl/", "length/")) for name in names)
    return "policy" if policy else "reward"
