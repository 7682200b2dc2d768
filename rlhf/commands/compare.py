"""`rlhf compare`: two policies on the same prompts, by a reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rlhf.commands.generate import Batch, Seed
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Prompt
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.answer_files import read_prompts
from rlhf.runs.after import AfterTraining
from rlhf.runs.files import atomic_folder, atomic_write_text
from rlhf.runs.progress import Progress
from rlhf.terminal.comparisons import print_comparison
from rlhf.terminal.options import Form, Label
from rlhf.terminal.output import require_output_folder

if TYPE_CHECKING:
    from policy.evaluation.contest import Bases, Drawing, Side
    from reward.evaluation.systems import AnsweredPrompt

CANDIDATE = (
    "a policy's `final` folder, a base (`embedded`, a folder, a Hugging Face name), or answers written by "
    "`rlhf generate --format jsonl`"
)


A = Annotated[str, typer.Argument(metavar="A", help=f"The first candidate: {CANDIDATE}.")]
B = Annotated[str, typer.Argument(metavar="B", help="The second candidate, likewise.")]
Reward = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The reward model: a `final` folder of `train-reward`, or any other (see --form).",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Rows with a column `prompt`, `demo`, or a run's folder for the prompts it held out. Left out, "
        "those of the answer files.",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A second reward model, on which no policy was trained."),
]
BestOf = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="Also evaluate best-of-n of B by the reward as a baseline: 1,2,4,8,16. B then generates as many "
        "answers as the largest n.",
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Answers of each candidate per prompt.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy decoding.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A new folder for report.html, compare.json and compare_rows.jsonl (all answers and rewards).",
    ),
]


def command(
    a: A,
    b: B,
    reward: Reward,
    prompts: Prompts = None,
    held_out: HeldOut = None,
    best_of: BestOf = None,
    samples: Samples = 2,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    batch: Batch = 16,
    seed: Seed = 0,
    output: Folder = None,
    form: Form = "auto",
    label: Label = None,
) -> None:
    """Compare the answers of two policies by a reward model, with control for length.

    Every answer of A is compared with every answer of B to the same prompt; a tie counts half. Intervals are
    95 %, bootstrapped over prompts. Also reported: mean reward and length of both, the win rate among answers
    of similar length, and the win rate at equal length by logistic regression. Prompts with a check have a
    gold score. Answers are sampled with transformers; for many prompts generate them first with
    `rlhf generate --engine vllm`.

    \b
    Examples:
      rlhf compare runs/demo/policy/final embedded --prompts runs/demo/policy --reward runs/demo/reward/final
      rlhf compare policy.jsonl base.jsonl --reward runs/demo/reward/final --best-of 1,2,4,8 --output out
    """
    sizes = _sizes(best_of)
    if output is not None:
        require_output_folder(output)
    from policy.evaluation.contest import (  # torch loads only when the command runs
        Bases,
        Drawing,
        Side,
        on_one_base,
    )
    from reward.evaluation.systems import compare_systems

    drops, bases = DropReport(), Bases()
    sides = on_one_base([Side.read(word, drops) for word in (a, b)])
    tasks = _prompts(prompts, sides, drops)
    drawing = Drawing(temperature, max_new_tokens, batch, seed)
    pairs = _pairs(
        sides, tasks, bases, drawing, [samples, max([samples, *sizes])], max(sizes, default=1), drops
    )
    judges = _judges(reward, held_out, bases, form, label)
    with Progress(len(pairs) * len(judges), "prompts scored") as progress:
        result, rows = compare_systems(pairs, judges, sizes=sizes, drops=drops, on_progress=progress.update)
    result = {
        "a": a,
        "b": b,
        "names": _names(sides),
        "reward": reward,
        "held_out": held_out,
        "samples": [len(pairs[0].a), len(pairs[0].b)],
        **result,
        "drops": drops.as_dict(),
    }
    console = Console(highlight=False)
    print_comparison(result, drops.lines() if drops.reasons else [], console)
    if output is not None:
        _write(output, result, rows)
        console.print(f"Report: {output / 'report.html'}", markup=False, soft_wrap=True)


def _sizes(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--best-of {text} is not a list of numbers.",
            allowed="whole numbers from 1",
            fix="--best-of 1,2,4,8,16",
        )
    return sorted({int(part) for part in parts})


def _prompts(source: str | None, sides: Sequence[Side], drops: DropReport) -> list[Prompt]:
    """The prompts of `--prompts`; else those of the first answer file."""
    if source is not None:
        loaded, report = read_prompts(source)
        drops.merge(report)
        return loaded
    for side in sides:
        if side.prompts:
            return side.prompts
    raise DataError(
        "No prompts: neither candidate is a file of answers.",
        fix="--prompts FILE, or --prompts RUN for the prompts that a run held out",
    )


def _pairs(
    sides: Sequence[Side],
    prompts: Sequence[Prompt],
    bases: Bases,
    drawing: Drawing,
    samples: Sequence[int],
    least: int,
    drops: DropReport,
) -> list[AnsweredPrompt]:
    from policy.evaluation.contest import answers_of, paired
    from reward.evaluation.systems import AnsweredPrompt

    answered, left = [], list(prompts)
    for side, letter, count in zip(sides, "AB", samples, strict=True):
        with Progress(len(left), f"prompts answered by {letter}") as progress:
            answers = answers_of(side, count, left, bases, drawing, drops, progress.update)
        left = [prompt for prompt in left if prompt.messages in answers]
        if not left:
            raise DataError(
                "\n".join([f"No prompt is left that {letter} can answer.", *drops.lines()]),
                allowed="files with some of the same prompts; prompts that fit into the context with an "
                "answer",
            )
        answered.append(answers)
    return [AnsweredPrompt(*pair) for pair in paired(left, *answered, least_b=least)]


def _judges(reward: str, held_out: str | None, bases: Bases, form: str, label: str | None) -> dict[str, Any]:
    """The reward models by name; the first shares the base of a candidate if it was trained on it."""
    from reward.load_scorer import load_scorer

    may_share = form in ("auto", "ours") and label is None
    shared = bases.judge(reward) if may_share else None
    judges: dict[str, Any] = {"reward": shared or load_scorer(reward, form=form, label=label)}
    if held_out is not None:
        judges["held_out"] = load_scorer(held_out, form=form, label=label)
    return judges


def _names(sides: Sequence[Side]) -> list[str]:
    """The names of the candidates in tables: with (A) and (B) where they are equal."""
    first, second = (side.name for side in sides)
    return [first, second] if first != second else [f"{first} (A)", f"{second} (B)"]


def _write(output: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    from rlhf.report.comparisons.winrate import write_page

    with atomic_folder(output) as folder:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        atomic_write_text(folder / "compare_rows.jsonl", "".join(lines))
        atomic_write_text(
            folder / "compare.json", json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        )
    name = "/".join(output.resolve().parts[-2:])
    saved = f"All answers and their rewards are in {output / 'compare_rows.jsonl'}"
    with AfterTraining(saved, fix="fix the cause; compare.json has the figures of the page") as after:
        after.on_main("the report", lambda: write_page(output, result, rows, name=name))
