"""The table and the picture of `benchmarks/reward_by_data.py`, from its cells.

    python benchmarks/reward_by_data_table.py runs/by-data --picture docs/reward-by-data.svg

For each side and number of pairs the learning rate is the one with the best mean accuracy on the validation
pairs; figures are of the test pairs, unless they name the validation, and only of pairs that every cell has
(`--held-out` may differ). Intervals: 95 %, with the variances over seeds and over prompts, since pairs of one
prompt are not independent.

Shapes: S seeds, P held-out pairs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.evaluation.benchmarks.calibration import calibration
from rlhf.core.statistics import Interval, grid_mean_interval

SIMILAR = 0.1
"""Largest relative difference of two lengths that still counts as equally long."""
SPLITS = ("validation", "test", "benchmark")
OURS, TRL = "ours", "trl"
LABELS = {OURS: "hybrid", TRL: "TRL's RewardTrainer"}
"""Sides in words; a recipe has its own name."""
COLOURS = ("#1f4e96", "#b3541e", "#3f7d44", "#7a4f9a")
DODGE = 1.06
"""Factor between the x positions of two sides, so that their intervals do not overlap."""
Rows = list[list[Any]]


@dataclass(frozen=True)
class Point:
    """One side at one number of pairs."""

    side: str
    pairs: int
    rate: float
    seeds: int
    minutes: float
    """Mean time of training on one machine; NaN if a run was interrupted."""
    accuracy: float
    interval: Interval
    above_longer: float
    """Accuracy minus the share of pairs in which the longer answer is the better one."""
    above_longer_interval: Interval
    similar: float
    """Accuracy among the pairs of similar length."""
    similar_pairs: int
    log_loss: float
    """Mean of -log sigmoid(better - worse reward), in nats; log 2 = 0.693 for a model that knows nothing."""
    calibration_error: float
    """Expected calibration error of sigmoid(difference) as the probability of being right."""
    benchmark: float
    """Accuracy on the config's benchmark; NaN without one."""
    sources: Mapping[str, float]
    """Accuracy by source."""
    sources_above_longer: Mapping[str, tuple[float, Interval]]
    """As `above_longer` and its interval, by source."""
    correct_SP: NDArray[np.float64]
    """1 for each seed and test pair that is judged right."""
    prompts_P: Sequence[int]
    """The prompt of each test pair, by number."""
    validation_SP: NDArray[np.float64]
    """As `correct_SP`, for the validation pairs."""
    validation_prompts_P: Sequence[int]
    log_loss_SP: NDArray[np.float64]
    """-log sigmoid(better - worse reward) of each seed and test pair."""
    prefers_longer: float
    """Share of the test pairs of unequal length whose longer answer has the higher reward."""
    right_where_shorter: float
    """Accuracy among the pairs whose better answer is not the longer one."""


def correct(rows: Rows) -> NDArray[np.float64]:
    """1 where the better answer has the higher reward; ties are wrong."""
    return np.array([float(chosen > rejected) for _, chosen, rejected, *_ in rows])


def longer(rows: Rows) -> NDArray[np.float64]:
    """1 where the better answer is the longer one, in characters."""
    return np.array([float(row[3] > row[4]) for row in rows])


def similar(rows: Rows) -> NDArray[np.bool_]:
    """Whether the lengths of a pair differ by at most SIMILAR of the longer one."""
    return np.array([abs(row[3] - row[4]) <= SIMILAR * max(row[3], row[4]) for row in rows])


def margins(rows: Rows) -> list[float]:
    """The reward of the better answer minus that of the other."""
    return [chosen - rejected for _, chosen, rejected, *_ in rows]


def prefers_longer(rows: Rows) -> float:
    """Share of the pairs of unequal length whose longer answer has the higher reward."""
    unequal = [row for row in rows if row[3] != row[4]]
    return float(np.mean([(row[1] > row[2]) == (row[3] > row[4]) for row in unequal]))


def on_common_pairs(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells with the held-out pairs that all of them have, in the order of the file."""
    kept: list[dict[str, Any]] = [dict(cell) for cell in cells]
    for split in SPLITS if "benchmark" in cells[0] else SPLITS[:2]:
        common = sorted(set.intersection(*(set(cell[split]["rows"]) for cell in cells)))
        for cell in kept:
            place = {row: index for index, row in enumerate(cell[split]["rows"])}
            cell[split] = {
                name: [cell[split][name][place[row]] for row in common] for name in ("pairs", "prompts")
            }
    return kept


def points(cells: Sequence[Mapping[str, Any]]) -> list[Point]:
    """One point for each side and number of pairs, in that order."""
    return [point(side, pairs, rates) for (side, pairs), rates in grouped(cells)]


def grouped(cells: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, int], dict[float, list[Any]]]]:
    """The cells of each side and number of pairs, by learning rate, with the pairs that all cells have."""
    groups: dict[tuple[str, int], dict[float, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for cell in on_common_pairs(cells):
        groups[cell["side"], cell["pairs"]][cell["rate"]].append(cell)
    return sorted(groups.items())


def point(side: str, pairs: int, rates: Mapping[float, Sequence[Mapping[str, Any]]]) -> Point:
    """The figures of the rate that is best on the validation pairs."""

    def validation(rate: float) -> float:
        return float(np.mean([correct(cell["validation"]["pairs"]).mean() for cell in rates[rate]]))

    rate = max(rates, key=validation)
    seeds = rates[rate]
    test, held_out = seeds[0]["test"], seeds[0]["validation"]
    rows = test["pairs"]
    correct_SP = np.stack([correct(cell["test"]["pairs"]) for cell in seeds])
    calibrations = [calibration(margins(cell["test"]["pairs"])) for cell in seeds]
    above_SP = correct_SP - longer(rows)
    alike_P = similar(rows)
    sources = np.array([row[0] for row in rows])
    return Point(
        side,
        pairs,
        rate,
        len(correct_SP),
        float(np.mean([cell["training_seconds"] or np.nan for cell in seeds])) / 60,
        float(correct_SP.mean()),
        grid_mean_interval(correct_SP, test["prompts"], bounds=(0.0, 1.0)),
        float(above_SP.mean()),
        grid_mean_interval(above_SP, test["prompts"], bounds=(-1.0, 1.0)),
        float(correct_SP[:, alike_P].mean()) if alike_P.any() else float("nan"),
        int(alike_P.sum()),
        float(np.mean([of_seed["log_loss"] for of_seed in calibrations])),
        float(np.mean([of_seed["ece"] for of_seed in calibrations])),
        float(np.mean([correct(cell["benchmark"]["pairs"]) for cell in seeds]))
        if "benchmark" in seeds[0]
        else float("nan"),
        {str(name): float(correct_SP[:, sources == name].mean()) for name in np.unique(sources)},
        {
            str(name): _mean_and_interval(above_SP, test["prompts"], sources == name)
            for name in np.unique(sources)
        },
        correct_SP,
        test["prompts"],
        np.stack([correct(cell["validation"]["pairs"]) for cell in seeds]),
        held_out["prompts"],
        np.stack([np.logaddexp(0, -np.array(margins(cell["test"]["pairs"]))) for cell in seeds]),
        float(np.mean([prefers_longer(cell["test"]["pairs"]) for cell in seeds])),
        float(correct_SP[:, longer(rows) == 0].mean()),
    )


def by_rate(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each learning rate gives, for a side and number of pairs with several; means over seeds."""
    lines = []
    for (side, pairs), of_rates in grouped(cells):
        for rate, seeds in sorted(of_rates.items()) if len(of_rates) > 1 else ():
            item = point(side, pairs, {rate: seeds})
            lines.append(
                f"{_label(side)}, {pairs:,} pairs, rate {rate:g}, {item.seeds} seeds: validation "
                f"{100 * item.validation_SP.mean():.1f} %, test {100 * item.accuracy:.1f} %, log loss "
                f"{item.log_loss:.3f}"
            )
    return lines


def _mean_and_interval(
    values_SP: NDArray[np.float64], prompts_P: Sequence[int], chosen_P: Any
) -> tuple[float, Interval]:
    """The mean over the chosen pairs, and its interval."""
    prompts = np.array(prompts_P)[chosen_P].tolist()
    chosen_SP = values_SP[:, chosen_P]
    return float(chosen_SP.mean()), grid_mean_interval(chosen_SP, prompts, bounds=(-1.0, 1.0))


def growth(result: Sequence[Point]) -> list[str]:
    """What more pairs change in accuracy and log loss on the test pairs, for each side; over common seeds."""
    lines = []
    for fewer, more in pairwise(result):
        if fewer.side != more.side:
            continue
        for what, scale, before_SP, after_SP in (
            ("accuracy", 100, fewer.correct_SP, more.correct_SP),
            ("log loss", 1, fewer.log_loss_SP, more.log_loss_SP),
        ):
            seeds = min(fewer.seeds, more.seeds)
            change = _change(scale * (after_SP[:seeds] - before_SP[:seeds]), more.prompts_P)
            sizes = f"{more.pairs:,} pairs less {fewer.pairs:,}, {seeds} seeds"
            lines.append(f"{_label(more.side)}, {sizes}: {what} {change}")
    return lines


def differences(result: Sequence[Point]) -> list[str]:
    """What one side has more than another on the same pairs, for every two sides; over common seeds."""
    lines = []
    for one, other in combinations(sorted(result, key=lambda item: _place(item.side)), 2):
        if one.pairs != other.pairs:
            continue
        seeds = min(one.seeds, other.seeds)
        lines.append(f"{_label(one.side)} minus {_label(other.side)}, {one.pairs:,} pairs, {seeds} seeds:")
        for what, scale, one_SP, other_SP, prompts_P in (
            ("accuracy on test pairs", 100, one.correct_SP, other.correct_SP, one.prompts_P),
            (
                "accuracy on validation pairs",
                100,
                one.validation_SP,
                other.validation_SP,
                one.validation_prompts_P,
            ),
            ("log loss on test pairs", 1, one.log_loss_SP, other.log_loss_SP, one.prompts_P),
        ):
            lines.append(f"  {what} {_change(scale * (one_SP[:seeds] - other_SP[:seeds]), prompts_P)}")
    return lines


def _change(difference_SP: NDArray[np.float64], prompts_P: Sequence[int]) -> str:
    low, high = grid_mean_interval(difference_SP, prompts_P)
    return f"{difference_SP.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _label(side: str) -> str:
    return LABELS.get(side, side)


def _place(side: str) -> tuple[bool, bool, str]:
    """Order of the sides: hybrid, recipes by name, TRL's."""
    return side == TRL, side != OURS, side


def table(result: Sequence[Point]) -> str:
    """A Markdown table, in per cent."""
    lines = [
        "| | pairs | learning rate | seeds | minutes | validation % | accuracy % | 95 % interval "
        "| minus longer answer | 95 % interval | similar length % | log loss | calibration error "
        "| benchmark % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for item in sorted(result, key=lambda item: (item.pairs, _place(item.side))):
        low, high = (100 * bound for bound in item.interval)
        below, above = (100 * bound for bound in item.above_longer_interval)
        minutes = "" if np.isnan(item.minutes) else f"{item.minutes:.0f}"
        lines.append(
            f"| {_label(item.side)} | {item.pairs:,} | {item.rate:g} | {item.seeds} | {minutes} "
            f"| {100 * item.validation_SP.mean():.1f} | {100 * item.accuracy:.1f} "
            f"| {low:.1f} to {high:.1f} | {100 * item.above_longer:+.1f} | {below:+.1f} to {above:+.1f} "
            f"| {100 * item.similar:.1f} of {item.similar_pairs} | {item.log_loss:.3f} "
            f"| {item.calibration_error:.3f} | {100 * item.benchmark:.1f} |"
        )
    return "\n".join(lines)


def draw(result: Sequence[Point], baseline: float, picture: Path) -> None:
    """Accuracy against the number of pairs, with intervals and the longer answer's line, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    sides = sorted({item.side for item in result}, key=_place)
    for place, (side, colour) in enumerate(zip(sides, cycle(COLOURS))):
        dodge = DODGE ** (place - (len(sides) - 1) / 2)
        line = [item for item in result if item.side == side]
        values = np.array([item.accuracy for item in line])
        bounds = np.array([item.interval for item in line]).reshape(-1, 2)
        axes.errorbar(
            [dodge * item.pairs for item in line],
            100 * values,
            yerr=100 * np.stack([values - bounds[:, 0], bounds[:, 1] - values]),
            color=colour,
            marker="o",
            capsize=3,
            label=_label(side),
        )
    axes.axhline(100 * baseline, color="#888888", linestyle="--", label="the longer answer")
    axes.set_xscale("log")
    sizes = sorted({item.pairs for item in result})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training pairs")
    axes.set_ylabel("held-out accuracy, %")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    """Print the table, by source too; draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="the --output of benchmarks/reward_by_data.py")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    options = parser.parse_args()
    files = sorted((options.output / "cells").glob("*.json"))
    if not files:
        parser.error(f"{options.output}/cells has no results; run benchmarks/reward_by_data.py first")
    cells = [json.loads(file.read_text("utf-8")) for file in files]
    result = points(cells)
    print(f"{len(result[0].prompts_P):,} test and {len(result[0].validation_prompts_P):,} validation pairs")
    print(table(result))
    for item in result:
        print(f"\n{_label(item.side)}, {item.pairs:,} pairs, by source, and minus the longer answer:")
        for name, share in item.sources.items():
            above, bounds = item.sources_above_longer[name]
            low, high = (100 * bound for bound in bounds)
            print(f"  {name} {100 * share:.1f}: {100 * above:+.1f} ({low:+.1f} to {high:+.1f})")
        print(
            f"prefers the longer answer in {100 * item.prefers_longer:.1f} % of the pairs; right in "
            f"{100 * item.right_where_shorter:.1f} % of those whose better answer is not the longer one"
        )
    print("", *by_rate(cells), "", *differences(result), *growth(result), sep="\n")
    baseline = float(longer(on_common_pairs(cells)[0]["test"]["pairs"]).mean())
    print(f"\nThe longer answer: {100 * baseline:.1f} %")
    if options.picture:
        draw(result, baseline, options.picture)


if __name__ == "__main__":
    main()
