"""What a search found: search.json and search.csv, and the lines and tables a person reads.

    {"command", "config", "study", "objective": {"metric", "direction"}, "parameters": {key: {"low", ... | "choices"}},
     "wanted": trials, "best": number or null, "train": command line or null, "importance": {key: share},
     "trials": [{"number", "state", "value", "ci95", "parameters": {key: value}, "updates", "seconds", "reason"}]}

`state` is complete, pruned, failed or running; only a complete trial has a value. `updates` is the last one at which a
trial was compared, where there is pruning.
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
"""Fewer completed trials say nothing about which key matters."""

Results = dict[str, Any]

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def read_results(told: SearchConfig, space: Space, shared: SharedStudy) -> Results:
    """What the study holds now."""
    trials = shared.trials()
    complete = {number: trial for number, trial in trials.items() if trial.state == TrialState.COMPLETE}
    sign = -1.0 if told.objective.direction == "minimize" else 1.0
    best = max(complete, key=lambda number: sign * float(complete[number].value or 0.0), default=None)
    train = None
    if best is not None:
        words = [*command_words(told, space.words(complete[best].params)), "--output", f"{told.output}-best"]
        train = shlex.join(words)
    return {
        "command": told.command,
        "config": str(told.config),
        "study": told.study,
        "objective": told.objective.model_dump(),
        "parameters": {
            name: one.model_dump(exclude_none=True, exclude_defaults=True)
            for name, one in told.parameters.items()
        },
        "wanted": told.trials,
        "best": best,
        "train": train,
        "importance": _importance(shared, list(complete.values())),
        "trials": [_entry(number, trial, space) for number, trial in trials.items()],
    }


def write_results(told: SearchConfig, space: Space, shared: SharedStudy) -> Results:
    """Write search.json and search.csv; gives what is in them."""
    results = read_results(told, space, shared)
    atomic_write_text(told.output / RESULTS, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    names = list(results["parameters"])
    table.writerow(["number", "state", "value", "seconds", *names])
    for trial in results["trials"]:
        values = [as_yaml(trial["parameters"].get(name)) for name in names]
        table.writerow([trial["number"], trial["state"], trial["value"], trial["seconds"], *values])
    atomic_write_text(told.output / TABLE, rows.getvalue())
    return results


def load_results(folder: Path) -> Results:
    """What search.json of a search's folder holds.

    Raises:
        DataError: it is not there, or is no JSON.
    """
    try:
        found: Results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / RESULTS} cannot be read: {error}", fix="run the search again") from None
    return found


def ranked(results: Results) -> list[Results]:
    """The completed trials, best first."""
    complete = [trial for trial in results["trials"] if trial["state"] == "complete"]
    most = results["objective"]["direction"] == "maximize"
    return sorted(complete, key=lambda trial: -trial["value"] if most else trial["value"])


def trial_line(results: Results, number: int) -> str:
    """One trial in a line: how it went, the best so far, its values."""
    trial = next(one for one in results["trials"] if one["number"] == number)
    if trial["state"] == "complete":
        how = write_value(trial)
    elif trial["state"] == "pruned":
        how = f"stopped at update {trial['updates']}, as it fell behind"
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
    """What became of the trials, and how far the best can be trusted."""
    states = [trial["state"] for trial in results["trials"]]
    counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "running")]
    said = [f"{len(states)} of {results['wanted']} trials: " + ", ".join(counts) + "."]
    if "running" in states:
        said.append("One that is running has another process; if that is gone, the same command resumes it.")
    order = ranked(results)
    if len(order) > 1:
        said.append(
            "The best of several was chosen by the data that measure it: its value flatters it a little."
        )
        low, high = order[0]["ci95"] or (math.inf, -math.inf)
        if near := sum(low <= trial["value"] <= high for trial in order[1:]):
            said.append(
                f"{near} of the {len(order) - 1} others lie within its 95 % interval: these data hardly tell them from it."
            )
    return said


def write_value(trial: Results) -> str:
    """A completed trial's value with its interval."""
    interval = write_interval(trial)
    return short(trial["value"]) + (f" ({interval})" if interval else "")


def write_interval(trial: Results) -> str:
    """The 95 % interval, or the empty string."""
    return " to ".join(short(end) for end in trial["ci95"]) if trial["ci95"] else ""


def write_parameter(value: Any) -> str:
    """A searched value, short enough for a table."""
    return f"{value:.3g}" if isinstance(value, float) else as_yaml(value)


def values_in_words(trial: Results) -> str:
    """The values of a trial, short."""
    values, names = trial["parameters"], short_names(trial["parameters"])
    return ", ".join(f"{names[name]} {write_parameter(value)}" for name, value in values.items())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key with its shortest ending that no other key has; where there is none, the key."""
    known = list(keys)
    names = {}
    for key in known:
        parts = key.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        unique = (one for one in endings if sum(f".{other}".endswith(f".{one}") for other in known) == 1)
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
    """How much each key decides whether a trial is among the best tenth (PED-ANOVA, arXiv 2304.10255); shares of one."""
    if len(complete) < IMPORTANCE_FROM or len({trial.value for trial in complete}) == 1:
        return {}
    return {
        name: float(share) for name, share in optuna.importance.get_param_importances(shared.study).items()
    }
