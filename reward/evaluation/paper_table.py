"""The paper's reward table, reproduced: every row on the same data and held-out pairs, with several seeds.

The rows are those of Table 2 in arXiv 2410.01257, whose figures (full fine-tuning of 70B, RewardBench) are
kept in `ROWS` beside ours; `hybrid`, both losses at once, is not in the paper. A pair is right when the
better answer scores strictly higher. The Pairwise Justifier has a row where the data has written reasons: it
reads each pair in both orders, and a pair is wrong where the orders disagree or a text cannot be read.

Shapes: R rows, S seeds, P held-out pairs, K resamples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.judging import write_result
from reward.justifier.evaluation import judge_pairs
from reward.scorer import Scorer
from reward.training.data import load_chat, load_data
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import DataError
from rlhf.core.markdown import table
from rlhf.core.statistics import claim_verdict, grid_mean_interval
from rlhf.report.comparisons.comparison import write_comparison
from rlhf.runs.after import is_finished
from rlhf.runs.files import atomic_write_text
from rlhf.runs.progress import Progress

Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RewardRow:
    """One row of the table."""

    title: str
    paper: float | None
    """RewardBench's overall score in the paper, in per cent."""
    starts_from: str | None = None
    """The row whose model, with its head, this one begins from."""
    extrapolates: tuple[str, str] | None = None
    """The weak and the strong row that ExPO extrapolates; nothing is trained."""


ROWS: dict[str, RewardRow] = {
    "regression-attributes": RewardRow("Regression, all attributes", 92.4),
    "regression-helpfulness": RewardRow("Regression, helpfulness only", 93.0),
    "bt-regular": RewardRow("Bradley-Terry, regular", 91.5),
    "bt-margin": RewardRow("Bradley-Terry, margin", 91.5),
    "bt-scaled": RewardRow("Bradley-Terry, scaled", 92.7),
    "helpfulness-bt-regular": RewardRow("Helpfulness, then regular", 92.7, "regression-helpfulness"),
    "helpfulness-bt-margin": RewardRow("Helpfulness, then margin", 93.0, "regression-helpfulness"),
    "helpfulness-bt-scaled": RewardRow("Helpfulness, then scaled", 93.7, "regression-helpfulness"),
    "helpfulness-bt-scaled-expo": RewardRow(
        "Helpfulness, then scaled, ExPO",
        94.1,
        extrapolates=("regression-helpfulness", "helpfulness-bt-scaled"),
    ),
    "hybrid": RewardRow("Hybrid: regression and scaled at once", None),
}
"""The recipes of `rlhf.config.recipes`, in the paper's order: a row comes after those it needs."""

JUSTIFIER = "pairwise-justifier"
ROWS_WITH_JUSTIFIER: dict[str, RewardRow] = {**ROWS, JUSTIFIER: RewardRow("Pairwise Justifier", 90.0)}
"""The paper's best variant of a justifier has 90.0."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing the paper's table says: the first row is better than the second."""

    sentence: str
    better: str
    worse: str


CLAIMS = (
    Claim("Helpfulness alone beats all attributes", "regression-helpfulness", "regression-attributes"),
    Claim("Scaled beats regular", "bt-scaled", "bt-regular"),
    Claim("Scaled beats margin", "bt-scaled", "bt-margin"),
    Claim("A start from helpfulness beats a fresh one", "helpfulness-bt-scaled", "bt-scaled"),
    Claim("Preferences add to helpfulness", "helpfulness-bt-scaled", "regression-helpfulness"),
    Claim("ExPO adds to its strong model", "helpfulness-bt-scaled-expo", "helpfulness-bt-scaled"),
)


def train_table(
    folder: Path,
    seeds: Sequence[int],
    *,
    train: Callable[[str, int, Path, Path | None], None],
    extrapolate: Callable[[Path, Path, int, Path], None],
    justify: Callable[[int, Path], None] | None = None,
    say: Callable[[str], None],
) -> None:
    """Fill `folder/seed-S/ROW`, one seed after another; finished rows are kept.

    Args:
        train: (recipe, seed, output, start): trains one recipe, from another's final/ where `start` is given.
        extrapolate: (weak, strong, seed, output): makes, and judges, the ExPO row.
        justify: (seed, output): trains and judges the row of the justifier; None leaves it out.
        say: receives a line before each row.
    """
    rows = ROWS_WITH_JUSTIFIER if justify else ROWS
    jobs = [(seed, name) for seed in seeds for name in rows]
    for number, (seed, name) in enumerate(jobs, 1):
        output, row = folder / f"seed-{seed}" / name, rows[name]
        if is_finished(output):
            say(f"[{number}/{len(jobs)}] {row.title}, seed {seed}: already finished.")
            continue
        say(f"[{number}/{len(jobs)}] {row.title}, seed {seed}.")
        if name == JUSTIFIER and justify:
            justify(seed, output)
        elif row.extrapolates:
            weak, strong = (output.parent / other for other in row.extrapolates)
            extrapolate(weak, strong, seed, output)
        else:
            start = output.parent / row.starts_from / "final" if row.starts_from else None
            train(name, seed, output, start)


def judge(config: RewardConfig, final: Path, folder: Path) -> None:
    """Score the held-out pairs of a config with an extrapolated model; write its two result files."""
    pairs = load_data(config, load_chat(config)).held_out
    with Progress(len(pairs), "pair") as progress:
        result, rows = evaluate(pairs, Scorer.load(final), on_progress=progress.update)
    write_result(folder / "eval.json", result, rows)


def judge_justifier(config: RewardConfig, final: Path, folder: Path) -> None:
    """Compare the held-out pairs of a config with a justifier; write its two result files.

    A pair with an unread text stays among the rows, as a wrong one.
    """
    pairs = load_data(config, load_chat(config)).held_out
    result, rows = judge_pairs(final, pairs)
    read = {row["id"]: row for row in rows}
    every = [
        read.get(number)
        or {
            "id": number,
            "subset": pair.subset,
            "correct": False,
            "length_chosen": len(pair.chosen),
            "length_rejected": len(pair.rejected),
        }
        for number, pair in enumerate(pairs, 1)
    ]
    write_result(folder / "eval.json", {**result, "read": len(rows), "count": len(every)}, every)


def correct_RSP(
    folder: Path, seeds: Sequence[int], names: Sequence[str] = tuple(ROWS)
) -> tuple[Shares, float, list[int]]:
    """Right (1) or wrong (0) for every row, seed and held-out pair; the accuracy of the longer answer; and
    the number of each pair's prompt.

    Args:
        names: the rows, keys of `ROWS_WITH_JUSTIFIER`.

    Raises:
        DataError: two runs were judged on different pairs.
    """
    correct: list[list[list[float]]] = []
    pairs: list[Any] | None = None
    longer: list[bool] = []
    prompts: list[int] = []
    for name in names:
        correct.append([])
        for seed in seeds:
            rows = held_out_rows(folder / f"seed-{seed}" / name)
            run_pairs = [(row["subset"], row["length_chosen"], row["length_rejected"]) for row in rows]
            if pairs is not None and run_pairs != pairs:
                raise DataError(
                    f"{folder / f'seed-{seed}' / name} was evaluated on other pairs than the rows before it.",
                    allowed="one data set, one split and one max_length for the whole table",
                    fix=f"delete {folder} and run the command again",
                )
            pairs = run_pairs
            # Rows of justifiers, and of earlier versions, do not number their prompts.
            prompts = prompts or [row.get("prompt", number) for number, row in enumerate(rows)]
            longer = [row["length_chosen"] > row["length_rejected"] for row in rows]
            correct[-1].append([float(row["correct"]) for row in rows])
    return np.array(correct), float(np.mean(longer)), prompts


def held_out_rows(run: Path) -> list[dict[str, Any]]:
    """The judged held-out pairs of a run: the last ones of its eval_rows.jsonl."""
    evaluation = json.loads((run / "eval.json").read_text("utf-8"))
    with (run / "eval_rows.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return rows[-evaluation.get("held_out", evaluation)["count"] :]


def summarise(
    right_RSP: Shares,
    longer: float,
    prompts_P: Sequence[int],
    seeds: Sequence[int],
    names: Sequence[str] = tuple(ROWS),
) -> dict[str, Any]:
    """table.json: each row's accuracy with its interval, and what becomes of each of the paper's claims."""
    index = {name: number for number, name in enumerate(names)}
    rows = {
        name: {
            "title": ROWS_WITH_JUSTIFIER[name].title,
            "accuracy": float(right_RSP[index[name]].mean()),
            "ci95": grid_mean_interval(right_RSP[index[name]], prompts_P, bounds=(0.0, 1.0)),
            "seeds": [float(value) for value in right_RSP[index[name]].mean(axis=1)],
            "paper": ROWS_WITH_JUSTIFIER[name].paper,
        }
        for name in names
    }
    claims = []
    for claim in CLAIMS:
        difference_SP = right_RSP[index[claim.better]] - right_RSP[index[claim.worse]]
        low, high = grid_mean_interval(difference_SP, prompts_P, bounds=(-1.0, 1.0))
        claims.append(
            {
                "sentence": claim.sentence,
                "difference": float(difference_SP.mean()),
                "ci95": (low, high),
                "verdict": claim_verdict(low, high),
                "paper": _paper_difference(claim),
            }
        )
    return {
        "pairs": right_RSP.shape[2],
        "seeds": list(seeds),
        "longer_answer": longer,
        "rows": rows,
        "claims": claims,
    }


def _paper_difference(claim: Claim) -> float | None:
    better, worse = ROWS[claim.better].paper, ROWS[claim.worse].paper
    return None if better is None or worse is None else round(better - worse, 1)


def tables(summary: Mapping[str, Any]) -> list[list[list[str]]]:
    """Two tables as rows of cells, their heads first: the rows in per cent, and the paper's claims."""
    count = len(summary["seeds"])
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    rows = [
        [f"{summary['pairs']} held-out pairs, {seeds}", "accuracy %", "95 % interval", "each seed", "paper"]
    ]
    for row in summary["rows"].values():
        each = " ".join(_percent(value) for value in row["seeds"])
        paper = "" if row["paper"] is None else f"{row['paper']:.1f}"
        rows.append([row["title"], _percent(row["accuracy"]), _span(row), each, paper])
    rows.append(["The longer answer", _percent(summary["longer_answer"]), "", "", ""])
    claims = [["what the paper's table says", "paper", "difference here", "95 % interval", "here"]]
    for claim in summary["claims"]:
        difference = f"{100 * claim['difference']:+.1f}"
        claims.append(
            [claim["sentence"], f"{claim['paper']:+.1f}", difference, _span(claim), claim["verdict"]]
        )
    return [rows, claims]


def lead(summary: Mapping[str, Any]) -> list[str]:
    """What came of it, in two sentences."""
    verdicts = [claim["verdict"] for claim in summary["claims"]]
    best = max(summary["rows"].values(), key=lambda row: row["accuracy"])
    counts = f"{verdicts.count('holds')} hold here, {verdicts.count('does not hold')} do not"
    return [
        f"Of {len(verdicts)} things the paper's table says, {counts}, {verdicts.count('open')} stay open.",
        f"The best row is “{best['title']}” with {_percent(best['accuracy'])} % ({_span(best)}) of "
        f"{summary['pairs']} held-out pairs; the longer answer gets {_percent(summary['longer_answer'])} %. "
        "A claim holds where the 95 % interval of the paired difference lies above zero.",
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    """The two tables as Markdown."""
    return "\n\n".join(table(head, rows) for head, *rows in tables(summary)) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _span(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{_percent(low)} to {_percent(high)}"


def write(folder: Path, summary: Mapping[str, Any]) -> Path:
    """table.json, table.md, table.svg and the page with all of it; returns the page."""
    atomic_write_text(folder / "table.json", json.dumps(summary, indent=1) + "\n")
    atomic_write_text(folder / "table.md", markdown(summary))
    draw(summary, folder / "table.svg")
    return write_comparison(
        folder,
        title="The paper's reward table",
        lead=lead(summary),
        pictures=[folder / "table.svg"],
        tables=dict(zip(("Accuracy", "What the paper says"), tables(summary), strict=True)),
    )


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Each row's accuracy with its interval, its seeds as small dots, beside the longer answer's line."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = list(summary["rows"].values())[::-1]
    figure, axes = pyplot.subplots(figsize=(7.2, 0.36 * len(rows) + 0.9), layout="constrained")
    for place, row in enumerate(rows):
        low, high = row["ci95"]
        axes.plot([100 * low, 100 * high], [place, place], color="#8aa4c8", linewidth=2.5, zorder=1)
        axes.scatter(
            [100 * value for value in row["seeds"]], [place] * len(row["seeds"]), s=9, color="#8a8a8a"
        )
        axes.scatter([100 * row["accuracy"]], [place], s=42, color="#1f4e96", zorder=3)
    axes.axvline(100 * summary["longer_answer"], color="#b3541e", linestyle="--", linewidth=1)
    axes.text(
        100 * summary["longer_answer"],
        len(rows) - 0.4,
        "the longer answer",
        color="#b3541e",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=9)
    axes.set_xlabel(f"accuracy in % on {summary['pairs']} held-out pairs, 95 % interval", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
