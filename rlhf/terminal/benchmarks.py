"""Prints the results of `rlhf evaluate-reward`: one function per kind of benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.data.evaluation.benchmarks import M_REWARDBENCH_NAME

BenchmarkResult = Mapping[str, Any]

_RULES = {
    "rewardbench": "RewardBench v1: sections weighted by its example counts, overall = mean of the four",
    "m-rewardbench": "M-RewardBench: sections weighted by its example counts, overall = mean of the four",
    "sections": "section = mean over its pairs, overall = mean of the sections",
    "pairs": "overall = mean over all pairs (the rows name no section)",
    "subsets": "correct if the best right answer scores above every wrong one; overall = mean of the subsets",
    "rewardbench-2": "RewardBench 2: 1/k where the right answer is one of k highest; Ties by its formula; "
    "overall = mean of the subsets",
    "rm-bench": "RM-Bench: each right answer against each wrong one, overall = mean of the four domains",
    "domains": "each right answer against each wrong one, overall = mean of the domains in the data",
}
BASELINES = {"longest": "length_baseline", "shortest": "shortest_baseline"}
"""Header and key of what picking by length alone gets."""
_QUANTILES = {"p05": "5 %", "p25": "25 %", "median": "median", "p75": "75 %", "p95": "95 %"}


def print_pairs(result: BenchmarkResult, console: Console) -> None:
    """Print the result of `evaluate`: subsets, sections, overall, and notes."""
    _print_subsets(result, "pairs", BASELINES, console)
    _print_parts(result, console)
    if "judge" in result:  # its scores are no log-odds
        return
    calibration = result["calibration"]
    correlation = result["length_correlation"]
    console.print(
        f"Calibration, for models trained by Bradley-Terry: the probability sigmoid(margin) is off by "
        f"{_percent(calibration['ece'])} points on average; Brier score {calibration['brier']:.3f} (a coin: "
        "0.250), log "
        f"loss {calibration['log_loss']:.3f} (a coin: 0.693).\n"
        f"Correlation of reward and length within pairs: {_number(correlation, '+.2f')}.",
        markup=False,
        soft_wrap=True,
    )


def print_rm_bench(result: BenchmarkResult, console: Console) -> None:
    """Print the result of `evaluate_rm_bench`: domains by level, then the matrix
    of styles."""
    intervals = result["intervals"]
    table = _table("Accuracy in %, ties wrong", "domain")
    for header in ("prompts", "easy", "normal", "hard", "all", "95 % interval"):
        table.add_column(header, justify="right")
    for name, domain in result["domains"].items():
        by_level = [_percent(domain[level]) for level in ("easy", "normal", "hard")]
        interval = _interval(intervals["sections"][name])
        table.add_row(name, str(domain["count"]), *by_level, _percent(domain["accuracy"]), interval)
    table.add_section()
    by_level = [_percent(share) for share in result["levels"].values()]
    interval = _interval(intervals["overall"])
    table.add_row("Overall", str(result["count"]), *by_level, _percent(result["overall"]), interval)
    console.print(table)
    matrix = _table("By style: rows are right answers, columns wrong ones", "")
    for style in result["styles"]:
        matrix.add_column(style, justify="right")
    for style, row in zip(result["styles"], result["matrix"], strict=True):
        matrix.add_row(style, *map(_percent, row))
    console.print(matrix)
    ends = ", ".join(f"{level} {_interval(intervals['levels'][level])}" for level in result["levels"])
    console.print(f"95 % intervals overall: {ends}.", soft_wrap=True)
    console.print(
        "Easy: below the diagonal, the right answer has the fancier style; hard: above it, the wrong one "
        f"has. Always taking the longer answer: {_percent(result['length_baseline'])}, the shorter one: "
        f"{_percent(result['shortest_baseline'])}.",
        soft_wrap=True,
    )
    _print_rule(result, console)


def print_one_of_many(result: BenchmarkResult, console: Console) -> None:
    """Print the result of `evaluate_choices`: subsets, overall, and the curve."""
    _print_subsets(result, "rows", {**BASELINES, "chance": "chance"}, console)
    _print_curve("Share of right answers among the picks of n", result["best_of_n"], console, percent=True)


def print_rewardbench_2(result: BenchmarkResult, console: Console) -> None:
    """Print the result of `evaluate_rewardbench_2`: subsets, overall, and the
    terms of Ties."""
    _print_subsets(result, "rows", BASELINES, console)
    if (ties := result["ties"]) is not None:
        terms = {name: value for name, value in ties.items() if isinstance(value, float) and name != "score"}
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in terms.items())
        console.print(f"Ties over {ties['count']} prompts: {shown}.", markup=False, soft_wrap=True)


def print_best_of_n(result: BenchmarkResult, console: Console) -> None:
    """Print the result of `evaluate_best_of_n`: the curve, and how often pairs are
    in order."""
    _print_curve("Mean true score of the answer picked out of n", result["best_of_n"], console)
    if len(result["subsets"]) > 1:
        for name, subset in result["subsets"].items():
            _print_curve(f"{name} ({subset['count']} prompts)", subset["best_of_n"], console)
    pairs = result["pair_accuracy"]
    if pairs["accuracy"] is not None:
        console.print(
            "Of two answers to one prompt, the better one has the higher reward in "
            f"{_percent(pairs['accuracy'])} % (95 % interval {_interval(pairs['ci95'])}, "
            f"{pairs['prompts']} prompts, ties wrong).",
            soft_wrap=True,
        )


PRINTERS: Mapping[str, Callable[[BenchmarkResult, Console], None]] = {
    "pairs": print_pairs,
    "rm-bench": print_rm_bench,
    "rewardbench-2": print_rewardbench_2,
    "one-of-many": print_one_of_many,
    "best-of-n": print_best_of_n,
}
"""By the kind of benchmark, see `rlhf.data.evaluation.benchmarks`."""


def print_overall(results: Mapping[str, BenchmarkResult], console: Console) -> None:
    """One table with a line for each result on pairs, and notes; the rest is in the report."""
    if not results:
        return
    table = _table("Accuracy in %, ties wrong", "")
    for header in ("pairs", "accuracy", "95 % interval", "longer answer", "shorter"):
        table.add_column(header, justify="right")
    for name, result in results.items():
        interval = _interval(result["intervals"]["overall"])
        lengths = [_percent(result[key]) for key in BASELINES.values()]
        table.add_row(name, str(result["count"]), _percent(result["overall"]), interval, *lengths)
    console.print(table)
    for note in dict.fromkeys(note for result in results.values() for note in result["notes"]):
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def print_result(kind: str, result: BenchmarkResult, console: Console) -> None:
    """Print a result of this kind, notes, and the self-check."""
    PRINTERS[kind](result, console)
    for note in result["notes"]:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    if "judge" in result:
        print_judge(result["judge"], console)
    if not (check := result["self_check"]):
        return
    console.print(
        f"Self-check: {check['count']} scores change by up to {check['largest_difference']:.2g} with the "
        f"batch (allowed: {check['tolerance']:g})."
        + (f"\nNote: {check['sentence']}" if "sentence" in check else ""),
        markup=False,
        soft_wrap=True,
    )


def print_judge(figures: Mapping[str, Any], console: Console) -> None:
    """What a judge's texts cost, and how far the order of two answers decides."""
    console.print(
        f"Judge: {figures['requests']:.0f} texts, {figures['unparsed']:.0f} could not be read and are left "
        f"out; {figures['seconds']:.2f} s a request, {figures['dollars']:.2f} dollars.",
        markup=False,
        soft_wrap=True,
    )
    if figures["position_bias"] is not None:
        console.print(
            f"Position bias {figures['position_bias']:+.3f} points for the answer shown first; both "
            f"orders agree on {_percent(figures['order_agreement'])} % of the pairs.",
            markup=False,
            soft_wrap=True,
        )
    if (alone := figures["one_order"]) is not None:
        interval = f" (95 % interval {_interval(alone['ci95'])})" if alone["ci95"] else ""
        console.print(
            f"Each order alone is right in {_percent(alone['accuracy'])} %{interval}; chance is 50 %.",
            markup=False,
            soft_wrap=True,
        )
    if figures["unparsed"] and figures["unread_as_no_vote"] is not None:
        console.print(
            "With unread texts as no vote, as JudgeBench counts them: "
            f"{_percent(figures['unread_as_no_vote'])} % of all pairs are right.",
            markup=False,
            soft_wrap=True,
        )


def print_suite(suite: Mapping[str, Any], console: Console) -> None:
    """A line for each benchmark; then published scores, notes, and what is missing, and why."""
    table = _table("Scores in %, ties wrong", "benchmark")
    for header in ("items", "score", "95 % interval", "longest", "shortest"):
        table.add_column(header, justify="right")
    for name, result in suite["benchmarks"].items():
        figure = result["headline"]
        lengths = ["" if (x := figure[key]) is None else _percent(x) for key in ("longest", "shortest")]
        score, interval = _percent(figure["score"]), _interval(figure["interval"])
        table.add_row(name, str(result["count"]), score, interval, *lengths)
    console.print(table)
    console.print("Longest, shortest: what always taking that answer gets.")
    _print_published(suite["benchmarks"], console)
    for name, result in suite["benchmarks"].items():
        for note in result["notes"]:
            console.print(f"{name}: {note}", markup=False, soft_wrap=True)
        if result["drops"]["dropped"]:
            left_out = ", ".join(f"{d['count']} {why}" for why, d in result["drops"]["dropped"].items())
            console.print(f"{name}: left out: {left_out}", markup=False, soft_wrap=True)
        for note in result["drops"].get("notes", {}):
            console.print(f"{name}: {note}", markup=False, soft_wrap=True)
        if "judge" in result:
            console.print(f"{name}:", markup=False)
            print_judge(result["judge"], console)
    reasons: dict[str, list[str]] = {}
    for name, reason in suite["missing"].items():
        reasons.setdefault(reason.replace(repr(name), "it"), []).append(name)
    for reason, names in reasons.items():
        console.print(f"Missing: {', '.join(_short(names))}: {reason}", markup=False, soft_wrap=True)


def _print_published(results: Mapping[str, BenchmarkResult], console: Console) -> None:
    """Scores of other models on the benchmarks that were evaluated."""
    rows = {name: result["published"] for name, result in results.items() if result["published"]}
    if not rows:
        return
    table = _table("Published scores in % (sources: reward/evaluation/benchmarks/published.py)", "benchmark")
    table.add_column("model", no_wrap=True)
    table.add_column("score", justify="right")
    for name, models in rows.items():
        table.add_section()
        for place, row in enumerate(models):
            table.add_row("" if place else name, row["model"], f"{row['score']:.1f}")
    console.print(table)


def _short(names: Sequence[str]) -> list[str]:
    """The names, with many languages of one benchmark as their number."""
    languages = [name for name in names if name.startswith(M_REWARDBENCH_NAME)]
    if len(languages) < 4:
        return list(names)
    others = [name for name in names if name not in languages]
    return [*others, f"{M_REWARDBENCH_NAME}LANGUAGE ({len(languages)} languages)"]


def _print_subsets(
    result: BenchmarkResult, unit: str, baselines: Mapping[str, str], console: Console
) -> None:
    """Subsets, sections and overall; `baselines`: a column's header and the key it shows."""
    table = _table("Accuracy in %, ties wrong", "subset")
    for header in (unit, "accuracy", "95 % interval", *baselines):
        table.add_column(header, justify="right")
    for name, subset in result["subsets"].items():
        shown = [_percent(subset[key]) for key in baselines.values()]
        table.add_row(
            name, str(subset["count"]), _percent(subset["accuracy"]), _interval(subset["ci95"]), *shown
        )
    intervals = result["intervals"]
    for i, (name, accuracy) in enumerate(result["sections"].items()):
        if i == 0:
            table.add_section()
        table.add_row(f"Section {name}", "", _percent(accuracy), _interval(intervals["sections"][name]), "")
    table.add_section()
    shown = [_percent(result[key]) for key in baselines.values()]
    interval = _interval(intervals["overall"])
    table.add_row("Overall", str(result["count"]), _percent(result["overall"]), interval, *shown)
    console.print(table)
    _print_rule(result, console)
    if ties := sum(subset["ties"] for subset in result["subsets"].values()):
        console.print(f"{ties} of {result['count']} {unit} are ties, counted as wrong.", markup=False)


def _print_parts(result: BenchmarkResult, console: Console) -> None:
    """Accuracy by strength and by length, and the distribution of rewards."""
    table = _table("By strength of the preference, by length and by group", "pairs where")
    for header in ("pairs", "accuracy", "95 % interval"):
        table.add_column(header, justify="right")
    parts = {f"the strength is {level}": part for level, part in result["strengths"].items()}
    lengths = result["lengths"]
    names = {"shorter": "the shorter", "longer": "the longer", "same": "as long as the other"}
    parts |= {f"the better answer is {name}": lengths[key] for key, name in names.items()}
    for group, values in result.get("groups", {}).items():
        parts |= {f"{group} is {value}": part for value, part in values.items()}
    for name, part in parts.items():
        if part["count"]:
            table.add_row(name, str(part["count"]), _percent(part["accuracy"]), _interval(part["ci95"]))
    if lengths["controlled"] is not None:
        table.add_section()
        table.add_row("Mean of shorter and longer", "", _percent(lengths["controlled"]), "")
    console.print(table)
    rewards = _table("Rewards", "answers")
    for header in ("mean", *_QUANTILES.values()):
        rewards.add_column(header, justify="right")
    for role in ("chosen", "rejected"):
        scores = result["scores"][role]
        rewards.add_row(role, *(f"{scores[key]:.2f}" for key in ("mean", *_QUANTILES)))
    console.print(rewards)


def _print_curve(
    title: str, curve: Sequence[Mapping[str, Any]], console: Console, *, percent: bool = False
) -> None:
    """One line an n; the gap is the one from a random pick to the best possible."""
    prompts = {row["prompts"] for row in curve}
    count = max(prompts)
    same = f", {count} prompt{'s' * (count > 1)}" if len(prompts) == 1 else ""
    table = _table(title + (", in %" if percent else "") + same, "n")
    headers = [] if same else ["prompts"]
    headers += ["picked", "95 % interval", "random", "best", "gap\nclosed"]
    lengths = [key for key in ("longest", "shortest") if all(key in row for row in curve)]
    for header in [*headers, *lengths]:
        table.add_column(header, justify="right")

    def write(value: float) -> str:
        return _percent(value) if percent else f"{value:.3f}"

    for row in curve:
        ends = row["ci95"]
        interval = "" if ends is None else f"{write(ends[0])} - {write(ends[1])}"
        way = "" if row["share"] is None else f"{_percent(row['share'])} %"
        figures = [write(row["score"]), interval, write(row["random"]), write(row["oracle"]), way]
        figures += [write(row[key]) for key in lengths]
        table.add_row(str(row["n"]), *([] if same else [str(row["prompts"])]), *figures)
    console.print(table)


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


def _print_rule(result: BenchmarkResult, console: Console) -> None:
    console.print(f"Rule: {_RULES[result['aggregation']]}.", markup=False, soft_wrap=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_percent(bounds[0])} - {_percent(bounds[1])}"


def _number(value: float | None, form: str) -> str:
    return "not defined" if value is None else format(value, form)
