"""Held-out accuracy against the number of training pairs, beside TRL's RewardTrainer on the same pairs.

    python benchmarks/reward_by_data.py configs/reward/by-data.yaml --pairs 1000 4000 --seeds 2
    python benchmarks/reward_by_data.py configs/reward/by-data.yaml --trl --pairs 1000 --rates 1e-4 3e-4
    python benchmarks/reward_by_data.py configs/reward/by-data.yaml --pairs 1000 --recipe bt-scaled

The pairs of the config are split once, by a hash of the prompt: `test_share` for the figures,
`validation_share` to choose a learning rate, the rest for training. Subsets are nested: the first N of one
shuffled order, with the same share of the ratings. Both sides train on the same token ids with the same base,
rank and targets, for one epoch. Ours also learns from the ratings: at once with the pairs, or before them
by a recipe such as helpfulness-bt-scaled, each for one epoch.

A cell is one training run. Its file `cells/NAME.json` has every held-out score, so figures are computed
without training again, and a second call trains only what is missing; an interrupted cell resumes from its
last checkpoint, and then has no training time. `benchmarks/reward_by_data_table.py` makes the table and the
picture.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from reward_vs_trl import PlainScorer, train_with_trl

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.self_check import ScorerLike
from reward.scorer import Scorer
from reward.training.batches import faults
from reward.training.data import load_chat, load_records, split_of
from rlhf.config.load import load_config
from rlhf.config.recipes import RECIPES
from rlhf.config.reward import RewardConfig
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Preference, Rating
from rlhf.data.comparisons import load_comparisons
from rlhf.models.chat.same_prompts import SamePrompts
from rlhf.runs.files import atomic_write_text

ORDER_SEED = 0
"""Shuffles the training pairs once for all seeds: a seed changes the run, not the data."""


@dataclass(frozen=True)
class Cell:
    """One training run."""

    side: str
    """`ours`, `trl`, or the name of a recipe."""
    pairs: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.side}-{self.pairs}-{self.rate:g}-seed{self.seed}"


def main() -> None:
    """Split the data, then train and score each missing cell in a process of its own."""
    options = parse()
    (options.output / "cells").mkdir(parents=True, exist_ok=True)
    if not (options.output / "data" / "split.json").exists():
        write_split(load_config(options.config, RewardConfig), options.output / "data")
    if options.cell:
        side, pairs, rate, seed = options.cell.split(",")
        run(Cell(side, int(pairs), float(rate), int(seed)), options)
        return
    side = "trl" if options.trl else options.recipe or "ours"
    cells = [
        Cell(side, pairs, rate, seed)
        for pairs in options.pairs
        for rate in options.rates
        for seed in range(options.seeds)
    ]
    for cell in cells:
        if (options.output / "cells" / f"{cell.name}.json").exists():
            print(f"{cell.name}: done")
            continue
        name = f"{cell.side},{cell.pairs},{cell.rate},{cell.seed}"
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--cell", name], check=True)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/by-data"))
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4], help="peak learning rates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--held-out", type=int, help="score at most this many pairs of each split")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--trl", action="store_true", help="train with TRL's RewardTrainer")
    other.add_argument("--recipe", choices=RECIPES, help="train by a recipe, not by the config's stage")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_split(config: RewardConfig, folder: Path) -> None:
    """Write the held-out pairs, the shuffled training pairs and the training ratings as JSON lines."""
    chat = load_chat(config)
    same = SamePrompts(chat)
    preferences, ratings, drops = load_records(config, same)
    same.add([record.prompt for record in [*preferences, *ratings]])
    sides: dict[str, list[Preference]] = {"training": [], "validation": [], "test": []}
    for pair, fault in zip(preferences, faults(preferences, chat, config.model.max_length), strict=True):
        if fault is not None:
            drops.drop(fault, pair.source)
            continue
        sides[split_of(pair, config, same)].append(pair)
    kept = [rating for rating in ratings if split_of(rating, config, same) == "training"]
    random.Random(ORDER_SEED).shuffle(sides["training"])
    random.Random(ORDER_SEED).shuffle(kept)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("validation", "test"):
        write_rows(folder / f"{name}.jsonl", [as_comparison(pair) for pair in sides[name]])
    write_rows(folder / "training.jsonl", [as_pair(pair) for pair in sides["training"]])
    write_rows(folder / "ratings.jsonl", [as_rating(rating) for rating in kept])
    counts = {name: len(pairs) for name, pairs in sides.items()} | {"ratings": len(kept)}
    atomic_write_text(
        folder / "split.json", json.dumps({"counts": counts, "dropped": drops.lines()}, indent=1)
    )
    print(counts, *drops.lines(), sep="\n")


def as_pair(pair: Preference) -> dict[str, Any]:
    """A training row in this project's columns."""
    return {
        "prompt": [message.as_dict() for message in pair.prompt],
        "response_1": pair.response_1,
        "response_2": pair.response_2,
        "preference_strength": pair.strength,
        "source": pair.source,
    }


def as_comparison(pair: Preference) -> dict[str, Any]:
    """A held-out row as a benchmark pair; its subset is the source."""
    return {
        "prompt": [message.as_dict() for message in pair.prompt],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "subset": pair.source,
    }


def as_rating(rating: Rating) -> dict[str, Any]:
    """A rated response in this project's columns."""
    return {
        "prompt": [message.as_dict() for message in rating.prompt],
        "response": rating.response,
        **rating.ratings,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, written atomically."""
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def run(cell: Cell, options: argparse.Namespace) -> None:
    """Train the cell, score the held-out pairs, and write its file."""
    config, path = cell_config(cell, options)
    if options.threads:
        torch.set_num_threads(options.threads)  # TRL's side; the config has it for ours
    folder = options.output / "runs" / cell.name
    started, resumed = time.monotonic(), folder.exists()
    if cell.side != "trl":
        command = [sys.executable, "-m", "rlhf", "train-reward", str(path), "--output", str(folder)]
        subprocess.run([*command, *(["--resume"] if resumed else [])], check=True)
        scorer: ScorerLike = Scorer.load(folder / "final")
    else:
        chat = load_chat(config)
        model = train_with_trl(config, chat, folder, batch=8, learning_rate=cell.rate, seed=cell.seed)
        scorer = PlainScorer(model, chat)
    seconds = time.monotonic() - started
    gc.collect()
    result: dict[str, Any] = {
        "side": cell.side,
        "pairs": cell.pairs,
        "rate": cell.rate,
        "seed": cell.seed,
        "training_seconds": None if resumed else round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
    for name in ("validation", "test"):
        result[name] = score(options.output / "data" / f"{name}.jsonl", scorer, options.held_out)
    if base := load_config(options.config, RewardConfig).benchmark:
        result["benchmark"] = score(Path(base), scorer, options.held_out)
    atomic_write_text(options.output / "cells" / f"{cell.name}.json", json.dumps(result))
    print(cell.name, result["test"]["accuracy"], f"{seconds:.0f} s")


def cell_config(cell: Cell, options: argparse.Namespace) -> tuple[RewardConfig, Path]:
    """The config of one cell, with the first pairs and as large a share of the ratings; and its file."""
    data = options.output / "data"
    counts = json.loads((data / "split.json").read_text())["counts"]
    if cell.pairs > counts["training"]:
        raise SystemExit(f"--pairs {cell.pairs}: the config has {counts['training']} training pairs")
    ratings = round(counts["ratings"] * cell.pairs / counts["training"])
    rows: list[dict[str, Any]] = []
    for name, count in (("training", cell.pairs), ("ratings", ratings)):
        with (data / f"{name}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, count)]
        write_rows(data / f"{name}-{cell.pairs}.jsonl", rows)
    rated = {name for row in rows for name in row}  # a subset may lack an attribute that few sources have
    stage = {"optimizer": {"learning_rate": cell.rate, "warmup_steps": 5, "schedule": "cosine"}}
    base = yaml.safe_load(options.config.read_text("utf-8"))
    body = {
        **base,
        "seed": cell.seed,
        "threads": options.threads,
        "stages": [{**base["stages"][0], **stage}],
        "data": {
            "validation_share": 0.01,
            "preferences": [{"path": str(data / f"training-{cell.pairs}.jsonl")}],
            "ratings": [
                {
                    "path": str(data / f"ratings-{cell.pairs}.jsonl"),
                    "columns": {
                        name: name for name in ("prompt", "response", *HELPSTEER_ATTRIBUTES) if name in rated
                    },
                }
            ],
        },
    }
    if cell.side in RECIPES:
        body["recipe"] = cell.side
    body.pop("benchmark", None)
    path = options.output / "configs" / f"{cell.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    atomic_write_text(path, yaml.safe_dump(body, sort_keys=False))
    return load_config(path, RewardConfig), path


def score(path: Path, scorer: ScorerLike, limit: int | None) -> dict[str, Any]:
    """Accuracy, and the subset, rewards and lengths in characters of every pair, or of a fixed sample.

    `rows` are the pairs' places in the file. `prompts` numbers their prompts: pairs of one prompt are not
    independent.
    """
    comparisons, drops = load_comparisons(str(path))
    places = list(range(len(comparisons)))
    if limit is not None and limit < len(comparisons):
        places = random.Random(ORDER_SEED).sample(places, limit)
    result, rows = evaluate([comparisons[place] for place in places], scorer, drops=drops)
    columns = ("subset", "reward_chosen", "reward_rejected", "length_chosen", "length_rejected")
    return {
        "accuracy": result["overall"],
        "rows": [places[row["id"] - 1] for row in rows],
        "prompts": [row["prompt"] for row in rows],
        "pairs": [[_short(row[column]) for column in columns] for row in rows],
    }


def _short(value: Any) -> Any:
    """A reward with six decimals, so that files are small enough to keep; other values unchanged."""
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
