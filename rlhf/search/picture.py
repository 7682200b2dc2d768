"""The plots of a search, drawn by Optuna from an in-memory study of the results."""

from __future__ import annotations

import io
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from rlhf.search.results import Results, short_names, write_parameter

HISTORY, SLICES = "search.png", "search-keys.png"
DPI = 150
MAX_KEYS = 8
"""Number of keys that are plotted, the most important ones."""


def draw(results: Results) -> dict[str, bytes]:
    """The optimization history, and the value against each key, as PNG by file name; empty without a
    completed trial."""
    if results["best"] is None:
        return {}
    from matplotlib import pyplot  # half a second to import
    from optuna.visualization import matplotlib as plots

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pyplot.switch_backend("agg")
    study, names = study_of(results), short_names(results["parameters"])
    keys = [names[key] for key in list(results["importance"] or results["parameters"])[:MAX_KEYS]]
    target = results["objective"]["metric"].replace("_", " ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        plots.plot_optimization_history(study, target_name=target)
        history = _png(pyplot)
        plots.plot_slice(study, params=keys, target_name=target)
        return {HISTORY: history, SLICES: _png(pyplot)}


def study_of(results: Results) -> optuna.Study:
    """An in-memory study of the completed trials, with keys by their short names and choices as text."""
    names = short_names(results["parameters"])
    spaces: dict[str, BaseDistribution] = {}
    for key, space in results["parameters"].items():
        if "choices" in space:
            texts = dict.fromkeys(_text(choice) for choice in space["choices"])
            spaces[names[key]] = CategoricalDistribution(list(texts))
        else:
            spaces[names[key]] = FloatDistribution(space["low"], space["high"], log=space.get("log", False))
    study = optuna.create_study(direction=results["objective"]["direction"])
    for trial in results["trials"]:
        if trial["state"] == "complete":
            values = {
                names[key]: _text(value) if "choices" in results["parameters"][key] else float(value)
                for key, value in trial["parameters"].items()
            }
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE, value=trial["value"], params=values, distributions=spaces
                )
            )
    return study


def _text(choice: Any) -> str:
    return write_parameter(choice).replace("$", r"\$")  # matplotlib reads $...$ as mathematics


def _png(pyplot: Any) -> bytes:
    """The current figure as a PNG; it is closed."""
    data = io.BytesIO()
    pyplot.savefig(data, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    pyplot.close()
    return data.getvalue()
