"""`rlhf score`: scores every conversation in a file."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console

from reward.evaluation.self_check import ScoreLike, ScorerLike
from rlhf.core.errors import DataError, DivergenceError, OutputError
from rlhf.core.records import Conversation
from rlhf.data.readers.messages import read_answers, read_prompt
from rlhf.data.rules import UnusableRowError
from rlhf.data.sources.files import file_rows, missing_path
from rlhf.data.sources.rows import CORRECT_ROW, Row
from rlhf.runs.progress import Progress
from rlhf.terminal.options import Form, Label, TokensPerBatch
from rlhf.terminal.output import require_output_file

_SHAPE = (
    '{"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "..."}]}, or '
    '{"prompt": ..., "response": ...}'
)
_ANSWERS = ("response", "completion")
"""Columns of an answer; the second is TRL's."""
Principles = Annotated[
    list[str] | None,
    typer.Option(
        "--principle",
        metavar="TEXT",
        help="What a principle model (`rlhf train-principle`) scores by; may be repeated. The reward is the "
        "mean.",
    ),
]
_JSON = "text, finite numbers, true, false, null, lists and objects"
_CHUNK = 64  # lines held in memory at a time


def score(
    model: Annotated[
        str,
        typer.Argument(
            help="A reward model: the `final` folder of a `train-reward` run, or another's (see --form)."
        ),
    ],
    input_: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Rows with `messages`, or `prompt` and `response`; .jsonl, .json, .csv, .parquet, ...",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The JSON Lines to write; compressed if its name ends in .gz."),
    ],
    form: Form = "auto",
    label: Label = None,
    tokens_per_batch: TokensPerBatch = None,
    principle: Principles = None,
) -> None:
    """Score every conversation of a file with a reward model.

    A row has "messages" that end with the assistant's, or a "prompt" and its "response" or "completion" (text
    or messages). It is written as a JSON line with all its keys plus "reward" (a number) and "attributes" (a
    number per attribute of the model); existing keys of these names are replaced. All rows are checked before
    the first is scored, and the output is written only when it is complete.

    With a principle model, "attributes" has the score of each --principle.

    \b
    Examples:
      rlhf score runs/demo/reward/final --input answers.jsonl --output scored.jsonl
      rlhf score runs/principle/final --principle "The response is one sentence." --input a.jsonl --output
      b.jsonl
    """
    from reward.load_scorer import load_scorer  # torch loads only when the command runs

    require_output_file(output)
    if output.exists() and input_.exists() and output.samefile(input_):
        raise OutputError(f"{output} is the input.", fix="name another file as --output")
    total = sum(1 for _ in read_conversations(input_))
    scorer = load_scorer(
        model, form=form, label=label, tokens_per_batch=tokens_per_batch, principles=principle or ()
    )
    rows = read_conversations(input_)
    done = 0
    with _atomic_lines(output) as file, Progress(total, "lines") as progress:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            for scored in _scored(chunk, scorer):
                file.write(json.dumps(scored, allow_nan=False) + "\n")
            done += len(chunk)
            progress.update(done)
    Console(highlight=False).print(f"Wrote {done} scores to {output}.", markup=False, soft_wrap=True)


def read_conversations(path: Path) -> Iterator[tuple[Row, Conversation]]:
    """Stream the conversations of a file with their rows; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a row has no conversation that ends with the assistant.
    """
    if not path.exists():
        raise missing_path(path)
    for place, values in file_rows(path):
        if not isinstance(values, dict):
            raise DataError(f"{place}: not an object", allowed=_SHAPE)
        row = Row(place, values)
        if row.repeats_a_key:
            raise DataError(f"{place}: a key occurs twice", allowed="each key once", fix=CORRECT_ROW)
        try:
            conversation = _conversation(row)
        except UnusableRowError as error:
            raise DataError(f"{place}: the row {error}", allowed=_SHAPE) from error
        if not conversation or conversation[-1].role != "assistant":
            last = f"ends with the {conversation[-1].role}'s message" if conversation else "is empty"
            raise DataError(f"{place}: the conversation {last}", allowed=_SHAPE)
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: a value that JSON does not have ({error})", allowed=_JSON) from error
        yield row, conversation


def _conversation(row: Row) -> Conversation:
    if row.find("messages") is not None:
        return read_prompt(row, "messages")
    column = next((name for name in _ANSWERS if row.find(name) is not None), None)
    if column is None:
        raise DataError(f"{row.place}: no `messages`, `response` or `completion`", allowed=_SHAPE)
    prompt, (answer,) = read_answers(row, "prompt", column)
    return (*prompt, answer)


def _scored(chunk: Sequence[tuple[Row, Conversation]], scorer: ScorerLike) -> Iterator[dict[str, Any]]:
    for (row, _), result in zip(chunk, _scores(chunk, scorer), strict=True):
        for name, value in {"reward": result.reward, **result.attributes}.items():
            if not math.isfinite(value):
                raise DivergenceError(f"{row.place}: the model's {name} is {value}.", allowed="finite scores")
        yield {**row.values, "reward": result.reward, "attributes": dict(result.attributes)}


def _scores(chunk: Sequence[tuple[Row, Conversation]], scorer: ScorerLike) -> list[ScoreLike]:
    """The scores of a chunk; an error names its line."""
    try:
        return list(scorer.score([conversation for _, conversation in chunk]))
    except (DataError, DivergenceError) as error:
        if len(chunk) == 1:
            place = chunk[0][0].place
            kind = (
                DataError if isinstance(error, DataError) else DivergenceError
            )  # not a subclass's arguments
            raise kind(f"{place}: {error.found}", allowed=error.allowed, fix=error.fix) from error
    return [score for row in chunk for score in _scores([row], scorer)]


@contextmanager
def _atomic_lines(path: Path) -> Iterator[IO[str]]:
    """A text file that is renamed to `path` if the block succeeds, and removed otherwise."""
    opener = gzip.open if path.suffix == ".gz" else open
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with opener(temporary, "wt", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
