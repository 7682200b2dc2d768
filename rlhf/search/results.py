"""The results of a search: search.json and search.csv, and their text and tables.

    {"command", "config", "study", "objective": {"metric", "direction"}, "parameters": {key: {"low", ... |
    "choices"}},
     "wanted": trials, "best": number or null, "train": command line or null, "importance": {key: share},
     "trials": [{"number", "state", "value", "ci95", "parameters": {key: value}, "updates", "seconds",
     "reason"}]}

`state` is complete, pruned, failed or running; only complete trials have a value. `updates` is the last
update that was reported to the pruner.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from rlhf.config.search import SearchConfig
from rlhf.core.errors import DataError
from rlhf.report.numbers import duration, short
from rlhf.runs.folder import atomic_write_text
from rlhf.search.attempt import command_words
from rlhf.search.space import Space, as_yaml
from rlhf.search.storage import SharedStudy

RESULTS, TABLE = "search.json", "search.csv"
MOST_ROWS = 10
IMPORTANCE_FROM = 10
"""Minimum number of completed trials for the importance of keys."""

Results = dict[str, Any]

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def read_results(config: SearchConfig, space: Space, shared: SharedStudy) -> Results:
    """The current results of the study."""
    trials = shared.trials()
    complete = {number: trial for number, trial in trials.items() if trial.state == TrialState.COMPLETE}
    sign = -1.0 if config.objective.direction == "minimize" else 1.0
    best = max(complete, key=lambda number: sign * float(complete[number].value or 0.0), default=None)
    train = None
    if best is not None:
        words = [
            *command_words(config, space.words(complete[best].params)),
            "--output",
            f"{config.output}-best",
        ]
        train = shlex.join(words)
    return {
        "command": config.command,
        "config": str(config.config),
        "study": config.study,
        "objective": config.objective.model_dump(),
        "parameters": {
            name: parameter.model_dump(exclude_none=True, exclude_defaults=True)
            for name, parameter in config.parameters.items()
        },
        "wanted": config.trials,
        "best": best,
        "train": train,
        "importance": _importance(shared, list(complete.values())),
        "trials": [_entry(number, trial, space) for number, trial in trials.items()],
    }


def write_results(config: SearchConfig, space: Space, shared: SharedStudy) -> Results:
    """Write search.json and search.csv, and return the results."""
    results = read_results(config, space, shared)
    atomic_write_text(config.output / RESULTS, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    names = list(results["parameters"])
    table.writerow(["number", "state", "value", "seconds", *names])
    for trial in results["trials"]:
        values = [as_yaml(trial["parameters"].get(name)) for name in names]
        table.writerow([trial["number"], trial["state"], trial["value"], trial["seconds"], *values])
    atomic_write_text(config.output / TABLE, rows.getvalue())
    return results


def load_results(folder: Path) -> Results:
    """The results in search.json of a search's folder.

    Raises:
        DataError: it does not exist, or is not valid JSON.
    """
    try:
        results: Results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / RESULTS} cannot be read: {error}", fix="run the search again") from None
    return results


def ranked(results: Results) -> list[Results]:
    """The completed trials, best first."""
    complete = [trial for trial in results["trials"] if trial["state"] == "complete"]
    most = results["objective"]["direction"] == "maximize"
    return sorted(complete, key=lambda trial: -trial["value"] if most else trial["value"])


def trial_line(results: Results, number: int) -> str:
    """One line on a trial: its result, the best so far, its values."""
    trial = next(entry for entry in results["trials"] if entry["number"] == number)
    if trial["state"] == "complete":
        how = write_value(trial)
    elif trial["state"] == "pruned":
        how = f"pruned at update {trial['updates']}"
    else:
        how = trial["reason"] or trial["state"]
    best = "no trial is complete yet"
    if (first := next(iter(ranked(results)), None)) is not None:
        best = (
            "the best so far"
            if first["number"] == number
            else f"best {short(first['value'])} (trial {first['number']})"
        )
    took = f", {duration(trial['seconds'])}" if trial["seconds"] is not None else ""
    return f"trial {number}: {how}; {best}{took}; {values_in_words(trial)}"


def best_table(results: Results) -> Table:
    """The best trials, with their values."""
    objective = results["objective"]
    table = Table(title=escape(f"{objective['metric']}, best first ({objective['direction']})"))
    for column in ("trial", "value", "95 % interval", *short_names(results["parameters"]).values()):
        table.add_column(column, justify="right", overflow="fold")
    for trial in ranked(results)[:MOST_ROWS]:
        values = [escape(write_parameter(trial["parameters"].get(name))) for name in results["parameters"]]
        table.add_row(str(trial["number"]), short(trial["value"]), write_interval(trial), *values)
    return table


def summary(results: Results) -> list[str]:
    """Counts of trials, and how reliable the best value is."""
    states = [trial["state"] for trial in results["trials"]]
    counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "running")]
    lines = [f"{len(states)} of {results['wanted']} trials: " + ", ".join(counts) + "."]
    if "running" in states:
        lines.append(
            "Running trials belong to other processes; if one was killed, the same command resumes its trial."
        )
    order = ranked(results)
    if len(order) > 1:
        lines.append(
            "The best trial was selected on the data that measure it, so its value is slightly too high."
        )
        low, high = order[0]["ci95"] or (math.inf, -math.inf)
        if near := sum(low <= trial["value"] <= high for trial in order[1:]):
            lines.append(
                f"{near} of the {len(order) - 1} others lie within its 95 % interval: the difference is not "
                "significant."
            )
    return lines


def write_value(trial: Results) -> str:
    """A completed trial's value with its interval."""
    interval = write_interval(trial)
    return short(trial["value"]) + (f" ({interval})" if interval else "")


def write_interval(trial: Results) -> str:
    """The 95 % interval, or the empty string."""
    return " to ".join(short(end) for end in trial["ci95"]) if trial["ci95"] else ""


def write_parameter(value: Any) -> str:
    """A searched value, shortened for tables."""
    return f"{value:.3g}" if isinstance(value, float) else as_yaml(value)


def values_in_words(trial: Results) -> str:
    """The values of a trial in one line."""
    values, names = trial["parameters"], short_names(trial["parameters"])
    return ", ".join(f"{names[name]} {write_parameter(value)}" for name, value in values.items())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest unique suffix of each dotted key; the key itself if there is none."""
    known = list(keys)
    names = {}
    for key in known:
        parts = key.split(".")
        suffixes = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        unique = (
            suffix for suffix in suffixes if sum(f".{other}".endswith(f".{suffix}") for other in known) == 1
        )
        names[key] = next(unique, key)
    return names


def _entry(number: int, trial: FrozenTrial, space: Space) -> Results:
    known = {name: value for name, value in trial.params.items() if name in space.distributions}
    return {
        "number": number,
        "state": _STATES[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "ci95": trial.user_attrs.get("ci95"),
        "parameters": space.values(known),
        "updates": trial.last_step,
        "seconds": trial.user_attrs.get("seconds"),
        "reason": trial.user_attrs.get("reason"),
    }


def _importance(shared: SharedStudy, complete: list[FrozenTrial]) -> dict[str, float]:
    """Importance of each key for being among the best tenth of trials (PED-ANOVA, arXiv 2304.10255); sums to
    1."""
    if len(complete) < IMPORTANCE_FROM or len({trial.value for trial in complete}) == 1:
        return {}
    return {
        name: float(share) for name, share in optuna.importance.get_param_importances(shared.study).items()
    }
