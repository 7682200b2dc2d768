"""What a reward model is judged on: four kinds of rows, told apart by the columns of the first.

    `responses`                                 best-of-n    answers to one prompt with their true `scores`
    `chosen`, `rejected` lists, and `domain`    rm-bench     RM-Bench: three styles of a right and a wrong answer
    `chosen`, `rejected` lists                  one-of-many  RewardBench 2: a right answer among wrong ones
    anything else                               pairs        RewardBench: a better and a worse answer

A list of messages is one answer, not a list of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Candidates, Choice
from rlhf.data import rules
from rlhf.data.drops import DropReport
from rlhf.data.load import REWARDBENCH, load_comparisons, read_records, require_some
from rlhf.data.readers.messages import read_prompt
from rlhf.data.readers.rows import DEMO, MEND, Row, is_number, read_rows

Kind = Literal["pairs", "rm-bench", "one-of-many", "best-of-n"]

RM_BENCH = DataSource(path="THU-KEG/RM-Bench", split="train")
REWARDBENCH_2 = DataSource(path="allenai/reward-bench-2", split="test")
NAMED = {
    "rewardbench": REWARDBENCH,
    "rewardbench-2": REWARDBENCH_2,
    REWARDBENCH_2.path: REWARDBENCH_2,
    "rm-bench": RM_BENCH,
    RM_BENCH.path: RM_BENCH,
}
"""Short and full names of benchmarks on the Hub."""

DOMAINS = ("chat", "math", "code", "safety-refuse", "safety-response")
"""RM-Bench's own names; the two of safety count as one domain."""
STYLES = ("concise", "detailed", "detailed in markdown")
"""The styles of RM-Bench's answers, in the order of its lists."""

FEW_RESPONSES = "fewer than two responses"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Items of one kind (Comparison, Choice or Candidates), and what was left out."""

    kind: Kind
    items: Sequence[Any]
    drops: DropReport


def load_benchmark(path: str) -> Benchmark:
    """A benchmark by its name (`rewardbench`, `rewardbench-2`, `rm-bench`, `demo`), a file, or a folder.

    Raises:
        DataError: a malformed row, or nothing left.
    """
    if path == DEMO:
        return Benchmark("pairs", *load_comparisons(path))
    source = NAMED.get(path) or REWARDBENCH.model_copy(update={"path": path})
    first = next(read_rows(source, seed=0), None)
    kind = "pairs" if first is None else kind_of(first)
    if kind == "pairs":
        return Benchmark(kind, *load_comparisons(path))
    report = DropReport()
    items = list(read_records(read_rows(source, seed=0), READERS[kind], report, key=None, seen=set()))
    require_some(items, f"{kind} rows", [path], report)
    return Benchmark(kind, items, report)


def kind_of(row: Row) -> Kind:
    """The kind of benchmark a row belongs to, see the top of this file."""
    if row.find("responses") is not None:
        return "best-of-n"
    if _is_list_of_answers(row.find("chosen")) or _is_list_of_answers(row.find("rejected")):
        return "one-of-many" if row.find("domain") is None else "rm-bench"
    return "pairs"


def choice(row: Row) -> Choice:
    """A prompt with lists of right and of wrong answers; `subset` may be absent.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    prompt = read_prompt(row, "prompt")
    rules.require_prompt(prompt)
    return Choice(prompt, _answers(row, "chosen"), _answers(row, "rejected"), _subset(row))


def styled(row: Row) -> Choice:
    """An item of RM-Bench, its domain as subset.

    Raises:
        DataError: a domain RM-Bench does not have, or an answer in each style is not there.
        UnusableRowError: a rule says why the row is of no use.
    """
    domain = row.text("domain")
    if domain not in DOMAINS:
        raise DataError(
            f"{row.place}: RM-Bench has no domain {domain!r}.{did_you_mean(domain, DOMAINS)}",
            allowed=", ".join(DOMAINS),
            fix="mend the row; for lists of answers of your own, name the column `subset`",
        )
    item = choice(row)
    for column, answers in (("chosen", item.chosen), ("rejected", item.rejected)):
        if len(answers) != len(STYLES):
            raise DataError(
                f"{row.place}: column {column!r} has {len(answers)} answers, one a style is needed",
                allowed=f"{len(STYLES)} answers, in this order: {', '.join(STYLES)}",
                fix=MEND,
            )
    return Choice(item.prompt, item.chosen, item.rejected, domain)


def candidates(row: Row) -> Candidates:
    """A prompt with answers and the true quality of each, on any scale where higher is better.

    Raises:
        DataError: a column is missing or of the wrong type, or the two lists differ in length.
        UnusableRowError: a rule says why the row is of no use.
    """
    prompt = read_prompt(row, "prompt")
    responses, scores = _answers(row, "responses"), row.get("scores")
    if not isinstance(scores, list) or len(scores) != len(responses) or not all(map(is_number, scores)):
        raise row.wrong("scores", f"a finite number for each of the {len(responses)} responses")
    rules.require_prompt(prompt)
    if len(responses) < 2:
        raise rules.UnusableRowError(FEW_RESPONSES)
    return Candidates(prompt, responses, tuple(map(float, scores)), _subset(row))


READERS: Mapping[Kind, Callable[[Row], Any]] = {
    "rm-bench": styled,
    "one-of-many": choice,
    "best-of-n": candidates,
}


def _is_list_of_answers(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict) for item in value)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise row.wrong(column, "a list of strings")
    return tuple(value)


def _subset(row: Row) -> str:
    return "all" if row.find("subset") is None else row.text("subset")
