"""Write the report page of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from rlhf.report import policy, reward
from rlhf.report.drawing.charts import PLOT, Chart, line_chart
from rlhf.report.drawing.series import POINT_LIMIT, Series
from rlhf.report.expo import expo_charts
from rlhf.report.files import RunFiles, read_run
from rlhf.report.html import asset, environment, script_hash
from rlhf.report.judgements import title_of
from rlhf.report.numbers import duration, finite, fixed
from rlhf.report.samples import sample_data
from rlhf.report.score_charts import score_charts
from rlhf.report.verdict import Verdict, policy_verdict
from rlhf.runs.files import atomic_write_text
from rlhf.runs.folder import SAMPLES

REPORT = "report.html"


def write_report(run: Path, output: Path | None = None, *, live: int = 0) -> Path:
    """Write one self-contained page on a run folder, to `run/report.html` or to `output`; return its path.

    The run may be in progress: the page lists what is missing.

    Raises:
        DataError: the folder does not exist, or has none of a run's files.
    """
    files = read_run(run)
    target = output or run / REPORT
    atomic_write_text(target, render(files, live=live))
    return target


def render(run: RunFiles, *, live: int = 0) -> str:
    """The page as text. Its content security policy allows its own scripts and no external resources."""
    templates = environment()
    templates.globals["plot"] = PLOT
    scripts = {name: asset(f"{name}.js") for name in ("guard", "page", "samples", "live")}
    samples = sample_data(run.path / SAMPLES, run.notes) if run.kind == "policy" else None
    content = {"policy": _policy_page, "reward": _reward_page, "dpo": _dpo_page}[run.kind](run)
    return templates.get_template("page.html").render(
        run=run,
        name="/".join(run.path.resolve().parts[-2:]),
        missing=missing(run),
        more=_other_charts(run, content.pop("shown")),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        environment=flat(run.environment),
        thinned=len(run.metrics) > POINT_LIMIT,
        guard=scripts.pop("guard"),
        scripts=list(scripts.values()),
        style=asset("page.css"),
        samples=samples,
        live=live or "",
        hashes=" ".join(script_hash(text) for text in (asset("guard.js"), *scripts.values())),
        **content,
    )


def _policy_page(run: RunFiles) -> dict[str, Any]:
    charts, shown = policy.policy_charts(run)
    answers = policy.pairs(run.evaluation)
    compared = policy.compared(run.evaluation)
    verdict = policy_verdict(run.evaluation, run.metrics)
    place, judge = _reward_evaluation(run)
    return {
        "title": "Policy alignment",
        "verdict": verdict if compared else _before_evaluation(run, verdict),
        "facts": _policy_facts(run),
        "compared": compared,
        "charts": charts,
        "shown": shown,
        "answers": answers,
        "tally": policy.tally(answers),
        "has_gold": any(pair.gold is not None for pair in answers),
        "sampled": policy.sampled(run),
        "table": reward.reward_table(judge),
        "length_correlation": reward.length_correlation(judge),
        "score_charts": [],
        "table_source": place,
        "drops": reward.dropped(run.drops),
    }


def _reward_page(run: RunFiles) -> dict[str, Any]:
    charts, shown = reward.reward_charts(run)
    verdict = reward.reward_verdict(run.evaluation)
    table = reward.reward_table(run.evaluation)
    return {
        "title": title_of(run.config),
        "verdict": verdict if table else _before_evaluation(run, verdict),
        "facts": _reward_facts(run),
        "compared": [],
        "charts": charts,
        "shown": shown,
        "answers": [],
        "tally": {},
        "has_gold": False,
        "sampled": [],
        "table": table,
        "length_correlation": reward.length_correlation(run.evaluation),
        "score_charts": [*score_charts(run.evaluation), *expo_charts(run.expo)],
        "table_source": "",
        "drops": reward.dropped(run.drops),
    }


def _dpo_page(run: RunFiles) -> dict[str, Any]:
    """The page of a reward model, for the policy's implicit reward on held-out pairs."""
    page = _reward_page(run)
    verdict = reward.reward_verdict(run.evaluation, reward.IMPLICIT)
    loss, beta = run.config.get("loss"), run.config.get("beta")
    return page | {
        "title": "Direct preference optimisation",
        "verdict": verdict if page["table"] else _before_evaluation(run, verdict),
        "facts": [("Loss", f"{loss}, beta {beta}"), *page["facts"]],
    }


def _before_evaluation(run: RunFiles, verdict: Verdict) -> Verdict:
    """The verdict before the evaluation: steps so far, and the training rewards."""
    lines = [f"{run.last_step:,} steps are logged."] if run.metrics else ["No step is logged yet."]
    values = [value for _, value in run.values("reward/mean")]
    if run.kind == "policy" and len(values) >= 4:
        width = min(10, len(values) // 2)
        first, last = sum(values[:width]) / width, sum(values[-width:]) / width
        lines.append(
            f"In training, the mean reward of the first {width} steps was {fixed(first, 2)}, that of the "
            f"last {width} {fixed(last, 2)}; these are training prompts, so this is no evidence yet."
        )
    return Verdict(verdict.tone, verdict.label, verdict.sentence, lines)


def missing(run: RunFiles) -> list[str]:
    """What the page does not show, and why."""
    absent = {
        "config.yaml": "the settings are not shown.",
        "environment.json": "versions and machine are not shown.",
        "metrics.jsonl": "there are no curves.",
        "samples.jsonl": "there are no answers from training.",
        "eval.json": "it comes at the end of a run, and with it the verdict.",
    }
    if run.kind != "policy":
        del absent["samples.jsonl"]
    lines = [
        f"{name} is not there: {what}" for name, what in absent.items() if not (run.path / name).is_file()
    ]
    if run.evaluation.get("before") and not run.evaluation.get("after"):
        lines.append("eval.json holds the figures before training only.")
    steps = finite(run.config.get("steps"))
    if run.metrics and steps and run.last_step < steps:
        lines.append(
            f"The run stands at step {run.last_step:,} of {steps:,.0f}: it is still running, or was stopped."
        )
    return lines + run.notes


def _time(run: RunFiles) -> list[tuple[str, str]]:
    seconds = sum(value for _, value in run.values("time/step"))
    return [("Training time", duration(seconds))] if seconds else []


def _base(run: RunFiles) -> list[tuple[str, str]]:
    base = (run.config.get("model") or {}).get("base")
    rank = (run.config.get("adapter") or {}).get("rank")
    facts = [("Base", str(base))] if base else []
    if start := run.config.get("start"):
        facts.append(("Started from", str(start)))
    return [*facts, ("Adapter", f"LoRA, rank {rank}")] if rank else facts


def _policy_facts(run: RunFiles) -> list[tuple[str, str]]:
    kl = (run.config.get("algorithm") or {}).get("kl") or {}
    facts = _base(run)
    if kl:
        facts.append(
            ("KL penalty", f"{kl.get('coefficient')} × {kl.get('estimator')}, {kl.get('reduction')}")
        )
    if run.metrics:
        facts.append(("Updates", f"{run.last_step:,}"))
    if finite(run.evaluation.get("prompts")):
        samples = run.evaluation.get("samples")
        facts.append(("Evaluated on", f"{run.evaluation['prompts']} held-out prompts × {samples or 1}"))
    return [*facts, *_time(run)]


def _reward_facts(run: RunFiles) -> list[tuple[str, str]]:
    facts = _base(run)
    names = [str(stage.get("name")) for stage in run.config.get("stages") or []]
    if names:
        facts.append(("Stages", ", ".join(names)))
    if run.metrics:
        facts.append(("Updates", f"{run.last_step:,}"))
    return [*facts, *_time(run)]


def _reward_evaluation(run: RunFiles) -> tuple[str, dict[str, Any]]:
    """The evaluation of the policy's reward model, if its run folder exists.

    The config's path is resolved in the working directory, as in the run, then in the folders above the run.
    """
    named = _reward_folder(run.config.get("reward"))
    if named is None:
        return "", {}
    for root in (Path(), *run.path.resolve().parents):
        file = (root / named).parent / "eval.json"
        if (root / named).is_dir() and file.is_file():
            try:
                evaluation = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                run.notes.append(f"The reward model's evaluation {file} cannot be read: {error}")
                return named, {}
            return named, evaluation if isinstance(evaluation, dict) else {}
    run.notes.append(f"The reward model's evaluation was not found beside {named}: its table is not shown.")
    return named, {}


def _reward_folder(named: Any) -> str | None:
    """The first reward model on the policy's base, of one folder or of a list of rewards."""
    if isinstance(named, str):
        return named
    folders = [term.get("adapter") for term in named or [] if isinstance(term, dict)]
    return next((folder for folder in folders if isinstance(folder, str)), None)


def _other_charts(run: RunFiles, shown: set[str]) -> list[Chart]:
    """A small chart for every other metric."""
    names = sorted({name for row in run.metrics for name in row} - shown - {"step"})
    starts = reward.stages(run)
    charts = [
        line_chart(name, "", [Series(name, run.values(name))], span=run.span, stages=starts) for name in names
    ]
    return [chart for chart in charts if chart]


def flat(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every value of nested mappings under its dotted key, as text."""
    rows = []
    for key, value in mapping.items():
        if isinstance(value, dict):
            rows.extend(flat(value, f"{prefix}{key}."))
        else:
            rows.append((f"{prefix}{key}", _as_yaml(value)))
    return rows


def _as_yaml(value: Any) -> str:
    """A value as its config spells it."""
    if isinstance(value, list):
        return ", ".join(map(_as_yaml, value)) or "[]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
