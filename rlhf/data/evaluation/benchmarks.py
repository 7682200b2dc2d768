"""Benchmarks of reward models; the columns of the first row decide the kind.

    `response_A`, `response_B`, `label`         pairs        JudgeBench, its sources as subsets
    `response_1`, `response_2`, `winner`        pairs        PPE's human preferences; ties are dropped
    `response_1` ... `response_32`, `scores`    best-of-n    PPE's best of K
    `chosen` list, `id`, a subset of its own    rewardbench-2, as are `num_correct` and `num_incorrect`
    `responses`                                 best-of-n    answers to one prompt with their true `scores`
    `chosen`, `rejected` lists, and `domain`    rm-bench     RM-Bench: right and wrong answers in 3 styles
    `chosen`, `rejected` lists                  one-of-many  RewardBench 2: a right answer among wrong ones
    anything else                               pairs        RewardBench: a better and a worse answer

A list of messages is one answer, not a list of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Comparison
from rlhf.data.comparisons import REWARDBENCH, load_comparisons, pair_reader
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.benchmark_rows import (
    JUDGEBENCH_PAIRS,
    JUDGEBENCH_SUBSETS,
    REWARDBENCH_2_SUBSETS,
    best_of_k,
    candidates,
    choice,
    judgebench,
    m_rewardbench,
    ppe,
    rewardbench_2,
    styled,
)
from rlhf.data.load import read_records, require_some
from rlhf.data.readers.survey import survey
from rlhf.data.sources.rows import DEMO, Row, read_rows

BenchmarkKind = Literal["pairs", "rm-bench", "rewardbench-2", "one-of-many", "best-of-n"]
Schema = Literal["judgebench", "ppe", "best-of-k"] | BenchmarkKind
"""What a row looks like; several schemas make one kind."""

RM_BENCH = DataSource(path="THU-KEG/RM-Bench", split="train")
REWARDBENCH_2 = DataSource(path="allenai/reward-bench-2", split="test")
JUDGEBENCH = DataSource(path="ScalerLab/JudgeBench", split="gpt")
PPE = DataSource(path="lmarena-ai/PPE-Human-Preference-V1", split="test")
M_REWARDBENCH = DataSource(path="CohereLabsCommunity/multilingual-reward-bench", split="test")
PPE_BEST_OF_K = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
NAMED = {
    "judgebench": JUDGEBENCH,
    "judgebench-claude": JUDGEBENCH.model_copy(update={"split": "claude"}),
    JUDGEBENCH.path: JUDGEBENCH,
    "ppe": PPE,
    PPE.path: PPE,
    **{
        f"ppe-{name.lower()}": DataSource(path=f"lmarena-ai/PPE-{name}-Best-of-K", split="train")
        for name in PPE_BEST_OF_K
    },
    "rewardbench": REWARDBENCH,
    "rewardbench-2": REWARDBENCH_2,
    REWARDBENCH_2.path: REWARDBENCH_2,
    "rm-bench": RM_BENCH,
    RM_BENCH.path: RM_BENCH,
}
"""Names of benchmarks on the Hub, short and full; `m-rewardbench/LANGUAGE` is a language of M-RewardBench."""
M_REWARDBENCH_NAME = "m-rewardbench/"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Items of one kind (Comparison, Choice or Candidates), what was left out, and what the file lacks of the
    published benchmark."""

    kind: BenchmarkKind
    items: Sequence[Any]
    drops: DropReport
    notes: Sequence[str] = field(default_factory=tuple)


def load_benchmark(path: str) -> Benchmark:
    """A benchmark by its name (a key of `NAMED`, `m-rewardbench/LANGUAGE`, `demo`), a file, or a folder.

    Raises:
        DataError: a malformed row, or nothing left.
    """
    if path == DEMO:
        return Benchmark("pairs", *load_comparisons(path))
    source = source_of(path)
    first = next(read_rows(source, seed=0), None)
    schema: Schema = "pairs" if first is None else schema_of(first)
    report, read = DropReport(), READERS[schema]
    rows: Iterable[Row] = read_rows(source, seed=0)
    if schema == "pairs":
        rows, read = pair_reader(source, report, read)
    if schema == "ppe":
        facts = survey(read_rows(source, seed=0), source, "preferences")
        read = partial(ppe, first_index=facts.first_index or 0)
    items = list(read_records(rows, read, report, key=None, seen=set()))
    kind = KINDS.get(schema, schema)
    require_some(items, "comparisons" if kind == "pairs" else f"{kind} rows", [path], report)
    notes = _judgebench_notes(items) if schema == "judgebench" else []
    return Benchmark(cast(BenchmarkKind, kind), items, report, notes)


def _judgebench_notes(items: Sequence[Comparison]) -> list[str]:
    """A note where the pairs are not one whole split of JudgeBench."""
    missing = [name for name in JUDGEBENCH_SUBSETS.values() if all(item.subset != name for item in items)]
    if missing:
        return [f"Without {', '.join(missing)}: the overall score is not JudgeBench's."]
    if len(items) in JUDGEBENCH_PAIRS.values():
        return []
    sizes = " or ".join(f"{count} ({split})" for split, count in JUDGEBENCH_PAIRS.items())
    return [f"{len(items)} pairs, where JudgeBench has {sizes}: the score is not that of a whole split."]


def source_of(path: str) -> DataSource:
    """Where a benchmark's rows come from."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith(M_REWARDBENCH_NAME):
        return M_REWARDBENCH.model_copy(update={"config_name": path.removeprefix(M_REWARDBENCH_NAME)})
    if near := did_you_mean(path, [*NAMED, DEMO]) if _is_word(path) else "":
        raise DataError(
            f"There is no benchmark {path!r}, and no such file.{near}",
            allowed=f"{', '.join([DEMO, *(name for name in NAMED if '/' not in name)])}, "
            f"{M_REWARDBENCH_NAME}LANGUAGE, a file, or the name of a data set on the Hub",
            fix="use one of these names, or the path of a file",
        )
    return REWARDBENCH.model_copy(update={"path": path})


def _is_word(path: str) -> bool:
    """Whether this is neither a path nor a name on the Hub."""
    return "/" not in path and not Path(path).suffix and not Path(path).exists()


def schema_of(row: Row) -> Schema:
    """What a row looks like, see the top of this file."""
    if row.find("response_A") is not None and row.find("label") is not None:
        return "judgebench"
    if row.find("response_3") is not None and row.find("scores") is not None:
        return "best-of-k"
    if row.find("response_1") is not None and row.find("winner") is not None:
        return "ppe"
    if row.find("responses") is not None:
        return "best-of-n"
    if _is_list_of_answers(row.find("chosen")) or _is_list_of_answers(row.find("rejected")):
        if row.find("domain") is not None:
            return "rm-bench"
        named = row.find("id") is not None and row.find("subset") in REWARDBENCH_2_SUBSETS
        # A first row with a wrong id or subset must not change the rule of the file.
        counted = {"num_correct", "num_incorrect"} <= row.values.keys()
        return "rewardbench-2" if named or counted else "one-of-many"
    return "pairs"


def kind_of(row: Row) -> BenchmarkKind:
    """The kind of benchmark a row belongs to, see the top of this file."""
    schema = schema_of(row)
    return cast(BenchmarkKind, KINDS.get(schema, schema))


READERS: Mapping[Schema, Callable[[Row], Any]] = {
    "pairs": m_rewardbench,
    "judgebench": judgebench,
    "ppe": ppe,
    "best-of-k": best_of_k,
    "rewardbench-2": rewardbench_2,
    "rm-bench": styled,
    "one-of-many": choice,
    "best-of-n": candidates,
}


KINDS: Mapping[Schema, BenchmarkKind] = {"judgebench": "pairs", "ppe": "pairs", "best-of-k": "best-of-n"}
"""The kind of a schema that has another name."""


def _is_list_of_answers(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict) for item in value)
