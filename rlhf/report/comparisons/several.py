"""One page on several runs: results side by side, config differences, and curves in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.core.errors import DataError
from rlhf.report.drawing.charts import PLOT, Chart, line_chart
from rlhf.report.drawing.series import Series
from rlhf.report.files import RunFiles, read_run
from rlhf.report.html import asset, environment, script_hash
from rlhf.report.numbers import DASH, fixed
from rlhf.report.page import flat
from rlhf.report.reward import reward_verdict
from rlhf.report.verdict import change, policy_verdict
from rlhf.runs.files import atomic_write_text

PAGE = "runs.html"
AT_MOST = 5
"""Maximum number of lines in a chart."""
FIRST = (
    *("reward/mean", "reward/held_out", "gold/mean", "kl/mean", "kl/sum", "length/mean", "policy/entropy"),
    *("loss/total", "loss/bt", "loss/regression", "reward/accuracy", "validation/loss", "time/step"),
)
"""Metrics whose curves are shown; the others are folded."""
IGNORED = ("output",)
"""Config keys that differ between any two runs."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run in the table of results."""

    name: str
    verdict: str
    steps: str
    figures: Sequence[str]


def write_several(paths: Sequence[Path], output: Path | None = None, *, live: int = 0) -> Path:
    """Write one page on several runs, to `runs.html` in their common folder or to `output`; return its path.

    Raises:
        DataError: a folder is not a run folder, or there are too many.
    """
    if len(paths) > AT_MOST:
        raise DataError(
            f"{len(paths)} runs are too many for one page of curves.",
            allowed=f"2 to {AT_MOST} runs",
            fix="name fewer runs; `rlhf frontier` compares many policies at equal KL",
        )
    runs = [read_run(path) for path in paths]
    target = output or paths[0].resolve().parent / PAGE
    atomic_write_text(target, render_several(runs, live=live))
    return target


def render_several(runs: Sequence[RunFiles], *, live: int = 0) -> str:
    """The page as text.

    Args:
        live: seconds until the page reloads itself; 0: never.
    """
    templates = environment()
    templates.globals["plot"] = PLOT
    names = names_of([run.path for run in runs])
    guard, script, reload = (asset(name) for name in ("guard.js", "page.js", "live.js"))
    charts, more, absent = _charts(runs, names)
    notes = [f"{name}: {note}" for run, name in zip(runs, names, strict=True) for note in run.notes]
    if absent:
        notes.append(f"Not logged by every run, and so without a curve: {', '.join(absent)}.")
    return templates.get_template("several.html").render(
        runs=[_result(run, name) for run, name in zip(runs, names, strict=True)],
        figures=("reward", "gold score", "KL"),
        differences=differences(runs),
        charts=charts,
        more=more,
        notes=notes,
        live=live or "",
        guard=guard,
        script=script,
        reload=reload,
        style=asset("page.css"),
        hashes=" ".join(script_hash(text) for text in (guard, script, reload)),
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest suffixes of the paths that differ from one another."""
    resolved = [path.resolve() for path in paths]
    for length in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-length:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(resolved, start=1)]


def differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Config keys that differ, with every run's value."""
    configs = [dict(flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key, DASH) for config in configs]) for key in keys if key not in IGNORED]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _result(run: RunFiles, name: str) -> RunResult:
    is_policy = run.kind == "policy"
    verdict = policy_verdict(run.evaluation, run.metrics) if is_policy else reward_verdict(run.evaluation)
    figures = []
    for quantity in ("reward", "gold", "kl"):
        difference = change(run.evaluation, quantity) if is_policy else None
        figures.append(
            f"{fixed(difference.before, 2)} → {fixed(difference.after, 2)}" if difference else DASH
        )
    return RunResult(name, f"{verdict.label}. {verdict.sentence}", f"{run.last_step:,}", figures)


def _charts(runs: Sequence[RunFiles], names: Sequence[str]) -> tuple[list[Chart], list[Chart], list[str]]:
    """The shown and the folded charts, and metrics without a chart; a run has one colour in all charts."""
    metrics = sorted({name for run in runs for row in run.metrics for name in row} - {"step"})
    logged = [run.span for run in runs if run.metrics]
    if not logged:
        return [], [], []
    span = (min(low for low, _ in logged), max(high for _, high in logged))
    drawn = {}
    for metric in metrics:
        series = [Series(name, run.values(metric)) for run, name in zip(runs, names, strict=True)]
        if all(line.points for line in series):
            drawn[metric] = line_chart(metric, "", series, span=span)
    first = [chart for name in FIRST if (chart := drawn.get(name))]
    return (
        first,
        [chart for name, chart in drawn.items() if chart and name not in FIRST],
        [name for name in metrics if name not in drawn],
    )
