"""The results of a search, from search.json and search.csv to its page.

    {"search": the config without its storage, "best": number or null, "train": command line or null,
     "trials": [{"number", "state", "value", "ci95", "parameters": {key: value}, "updates", "seconds",
     "reason"}]}

`state` is complete, pruned, failed, running or waiting; only complete trials have a value. `updates` is the
last update that was reported to the pruner.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from rlhf.config.reading.values import as_yaml
from rlhf.config.search import SearchConfig
from rlhf.core.errors import DataError
from rlhf.report.comparisons.comparison import write_comparison
from rlhf.report.numbers import duration, short
from rlhf.runs.files import atomic_write_text
from rlhf.search.attempt import command_words
from rlhf.search.space import Space, words_of
from rlhf.search.storage import REASON, trials_of

RESULTS = "search.json"
IMPORTANCE_FROM = 10
"""Minimum number of completed trials for the importance of keys."""

Results = dict[str, Any]


def read_results(config: SearchConfig, space: Space, study: optuna.Study) -> Results:
    """The current results of the study."""
    trials = [
        {
            "number": number,
            "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "ci95": trial.user_attrs.get("ci95"),
            "parameters": space.values(trial.params),
            "updates": trial.last_step,
            "seconds": trial.user_attrs.get("seconds", 0.0),
            "reason": trial.user_attrs.get(REASON),
        }
        for number, trial in trials_of(study).items()
    ]
    search = config.model_dump(mode="json", exclude={"storage"}, exclude_none=True)
    results: Results = {"search": search, "best": None, "train": None, "trials": trials}
    for best in ranked(results)[:1]:
        train = command_words(config, words_of(best["parameters"]), f"{config.output}-best")
        results |= {"best": best["number"], "train": shlex.join(train)}
    return results


def write_results(config: SearchConfig, space: Space, study: optuna.Study) -> Results:
    """Write search.json and search.csv, and return the results."""
    results = read_results(config, space, study)
    atomic_write_text(config.output / RESULTS, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    rows = io.StringIO()
    columns = ["number", "state", "value", "seconds", *config.parameters]
    table = csv.DictWriter(rows, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for trial in results["trials"]:
        table.writerow(trial | {name: as_yaml(trial["parameters"].get(name)) for name in config.parameters})
    atomic_write_text(config.output / "search.csv", rows.getvalue())
    return results


def ranked(results: Results) -> list[Results]:
    """The completed trials, best first."""
    complete = [trial for trial in results["trials"] if trial["state"] == "complete"]
    sign = -1 if results["search"]["objective"]["direction"] == "maximize" else 1
    return sorted(complete, key=lambda trial: sign * trial["value"])


def outcome(trial: Results) -> str:
    """The value of a completed trial with its 95 % interval; for others, their state or why they failed."""
    if trial["state"] == "complete":
        interval = " to ".join(map(short, trial["ci95"] or ()))
        return short(trial["value"]) + (f" ({interval})" if interval else "")
    pruned = f"pruned at update {trial['updates']}" if trial["state"] == "pruned" else trial["state"]
    return str(trial["reason"] or pruned)


def write_parameter(value: Any) -> str:
    """A searched value, shortened for tables."""
    return f"{value:.3g}" if isinstance(value, float) else as_yaml(value)


def trial_line(trial: Results) -> str:
    """A trial's result and values in one line."""
    values = ", ".join(f"{name} {write_parameter(value)}" for name, value in trial["parameters"].items())
    return f"trial {trial['number']}: {outcome(trial)}; {duration(trial['seconds'])}; {values}"


def summary(results: Results) -> list[str]:
    """Counts of trials, the best trial, and how reliable its value is."""
    states = [trial["state"] for trial in results["trials"]]
    counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "running")]
    lines = [f"{len(states)} of {results['search']['trials']} trials: " + ", ".join(counts) + "."]
    for best in ranked(results)[:1]:
        lines.append(f"Best: {trial_line(best)}")
        others = ranked(results)[1:]
        low, high = best["ci95"] or (math.inf, -math.inf)
        near = sum(low <= trial["value"] <= high for trial in others)
        if others:
            lines.append("The best trial was selected on the data that measure it: its value is too high.")
        if near:
            significance = "within its 95 % interval: the difference is not significant."
            lines.append(f"{near} of the {len(others)} others lie {significance}")
    return lines


def draw(study: optuna.Study, results: Results, folder: Path) -> None:
    """Write search-*.svg by Optuna: the value by trial, by each key, and the importance of keys."""
    import matplotlib as mpl  # half a second to import
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    values = len({trial["value"] for trial in ranked(results)})
    drawings: list[tuple[str, Callable[..., object], int]] = [
        ("history", plots.plot_optimization_history, 1),
        ("keys", partial(plots.plot_slice, params=list(results["search"]["parameters"])), 1),
        ("importance", plots.plot_param_importances, IMPORTANCE_FROM),
    ]
    plain = "$" not in json.dumps(results["search"]["parameters"])  # else a choice would be read as TeX
    pyplot.switch_backend("agg")
    for name, plot in [(name, plot) for name, plot, needed in drawings if values >= needed]:
        image = io.StringIO()
        with mpl.rc_context({"text.parse_math": plain}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plot(study, target_name=results["search"]["objective"]["metric"])
            pyplot.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None})
            pyplot.close()
        atomic_write_text(folder / f"search-{name}.svg", image.getvalue())


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write one self-contained page on a search, to `folder/report.html` or to `output`.

    Raises:
        DataError: search.json does not exist, or is not valid.
    """
    try:
        results: Results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / RESULTS} cannot be read: {error}", fix="run the search again") from None
    search, order = results["search"], ranked(results)
    metric = search["objective"]["metric"]
    train = ["Train with the best values: " + results["train"]] if order else []
    rows = [
        [str(trial["number"]), outcome(trial)]
        + [write_parameter(trial["parameters"].get(name)) for name in search["parameters"]]
        for trial in [*order, *(trial for trial in results["trials"] if trial not in order)]
    ]
    return write_comparison(
        folder,
        title=f"Search over {search['command']} {search['config']}",
        lead=[*summary(results), *train],
        pictures=sorted(folder.glob("search-*.svg")),
        tables={"Trials, best first": [["trial", metric, *search["parameters"]], *rows]},
        output=output,
    )
