"""Benchmarks of reward models; the columns of the first row decide the kind.

    `response_A`, `response_B`, `label`         pairs        JudgeBench, its sources as subsets
    `response_1`, `response_2`, `winner`        pairs        PPE's human preferences; ties are dropped
    `response_1` ... `response_32`, `scores`    best-of-n    PPE's best of K
    `chosen` list, `id`, a subset of its own    rewardbench-2
    `responses`                                 best-of-n    answers to one prompt with their true `scores`
    `chosen`, `rejected` lists, and `domain`    rm-bench     RM-Bench: right and wrong answers in 3 styles
    `chosen`, `rejected` lists                  one-of-many  RewardBench 2: a right answer among wrong ones
    anything else                               pairs        RewardBench: a better and a worse answer

A list of messages is one answer, not a list of answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Candidates, Choice, Comparison
from rlhf.data import rules
from rlhf.data.comparisons import REWARDBENCH, comparison, load_comparisons, pair_reader
from rlhf.data.drops import DropReport
from rlhf.data.load import read_records, require_some
from rlhf.data.readers.messages import read_prompt, read_responses
from rlhf.data.readers.survey import survey
from rlhf.data.readers.winners import winner_sign
from rlhf.data.sources.rows import CORRECT_ROW, DEMO, Row, is_number, read_rows

Kind = Literal["pairs", "rm-bench", "rewardbench-2", "one-of-many", "best-of-n"]
Schema = Literal["judgebench", "ppe", "best-of-k"] | Kind
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

TIES = "Ties"
REWARDBENCH_2_SUBSETS = ("Factuality", "Focus", "Math", "Precise IF", "Safety", TIES)
TIES_ID = re.compile(r"(ref|tied):\d+")
RIGHT, WRONG = 1, 3
"""Answers in a row of RewardBench 2 outside Ties."""
JUDGEBENCH_SUBSETS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""The beginning of JudgeBench's `source`, and what it is reported as."""
LABELS = {"A>B": ("response_A", "response_B"), "B>A": ("response_B", "response_A")}

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
    return Benchmark(cast(Kind, kind), items, report)


def source_of(path: str) -> DataSource:
    """Where a benchmark's rows come from."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith(M_REWARDBENCH_NAME):
        return M_REWARDBENCH.model_copy(update={"config_name": path.removeprefix(M_REWARDBENCH_NAME)})
    return REWARDBENCH.model_copy(update={"path": path})


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
        published = row.find("id") is not None and row.find("subset") in REWARDBENCH_2_SUBSETS
        return "rewardbench-2" if published else "one-of-many"
    return "pairs"


def kind_of(row: Row) -> Kind:
    """The kind of benchmark a row belongs to, see the top of this file."""
    schema = schema_of(row)
    return cast(Kind, KINDS.get(schema, schema))


def rewardbench_2(row: Row) -> Choice:
    """A row of RewardBench 2: `id`, `prompt`, lists `chosen` and `rejected`, their counts, and `subset`.

    Raises:
        DataError: a subset or an id of Ties that the benchmark does not have, other numbers of answers than
            the row or the benchmark says, or a column that is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    subset, identity = row.text("subset"), str(row.get("id"))
    if subset not in REWARDBENCH_2_SUBSETS:
        raise DataError(
            f"{row.place}: RewardBench 2 has no subset "
            f"{subset!r}.{did_you_mean(subset, REWARDBENCH_2_SUBSETS)}",
            allowed=", ".join(REWARDBENCH_2_SUBSETS),
            fix="correct the row; for lists of answers of your own, leave the column `id` out",
        )
    item = choice(row)
    if subset == TIES and not TIES_ID.fullmatch(identity):
        raise row.wrong("id", "ref:N or tied:N, N being a number, in the subset Ties")
    if identity.startswith("tied:") and len(item.chosen) < 2:
        raise row.wrong("chosen", "two or more right answers in a row tied:N")
    for column, answers, wanted in (
        ("num_correct", item.chosen, RIGHT),
        ("num_incorrect", item.rejected, WRONG),
    ):
        if row.find(column) is not None and row.integer(column, 0, 10**6) != len(answers):
            raise row.wrong(column, f"{len(answers)}, the number of answers in the row")
        if subset != TIES and len(answers) != wanted:
            name = "chosen" if answers is item.chosen else "rejected"
            raise DataError(
                f"{row.place}: column {name!r} has {len(answers)} answers",
                allowed=f"{RIGHT} chosen and {WRONG} rejected answers in the subset {subset}",
                fix=CORRECT_ROW,
            )
    return Choice(item.prompt, item.chosen, item.rejected, subset, identity)


def judgebench(row: Row) -> Comparison:
    """A row of JudgeBench: `question`, `response_A`, `response_B`, `label`, and `source`, the subset.

    Raises:
        DataError: a label or a source that the benchmark does not have, or a column that is missing or of the
            wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    label, source = row.text("label"), row.text("source")
    if label not in LABELS:
        raise row.wrong("label", " or ".join(LABELS))
    subset = next((name for start, name in JUDGEBENCH_SUBSETS.items() if source.startswith(start)), None)
    if subset is None:
        raise row.wrong("source", f"a source that begins with {', '.join(JUDGEBENCH_SUBSETS)}")
    prompt, (chosen, rejected) = read_responses(row, "question", *LABELS[label])
    rules.require_prompt(prompt)
    rules.require_difference(chosen, rejected)
    return Comparison(prompt, chosen, rejected, subset=subset)


def ppe(row: Row, *, first_index: int = 0) -> Comparison:
    """A row of PPE's human preferences: `prompt`, `response_1`, `response_2`, and `winner`.

    Args:
        first_index: what a numerical `winner` calls the first response, see `rlhf.data.readers.winners`.

    Raises:
        DataError: a winner that is neither, or a column that is missing or of the wrong type.
        UnusableRowError: a tie, or another rule says why the row is of no use.
    """
    prompt, (first, second) = read_responses(row, "prompt", "response_1", "response_2")
    sign = winner_sign(row, "winner", "response_1", "response_2", first_index)
    rules.require_prompt(prompt)
    rules.require_strength(sign)
    rules.require_difference(first, second)
    chosen, rejected = (first, second) if sign < 0 else (second, first)
    groups = {"language": row.text("language")} if row.find("language") is not None else {}
    return Comparison(prompt, chosen, rejected, subset="human preference", groups=groups)


def best_of_k(row: Row) -> Candidates:
    """A row of PPE's best of K: `prompt`, `response_1` to `response_K`, and `scores`, right or wrong.

    Raises:
        DataError: a response is missing, or the scores are not one truth value or number a response.
        UnusableRowError: a rule says why the row is of no use.
    """
    names = sorted(
        (name for name in row.values if re.fullmatch(r"response_\d+", name)),
        key=lambda name: int(name.removeprefix("response_")),
    )
    if names != [f"response_{number}" for number in range(1, len(names) + 1)]:
        raise DataError(
            f"{row.place}: the columns are {', '.join(names)}", allowed="response_1 to response_K"
        )
    prompt, responses = read_responses(row, "prompt", *names)
    scores = row.get("scores")
    if not isinstance(scores, list) or len(scores) != len(names) or not all(map(_is_score, scores)):
        raise row.wrong_item(
            "scores", f"true, false or a number for each of the {len(names)} responses", _is_score
        )
    rules.require_prompt(prompt)
    return Candidates(prompt, tuple(responses), tuple(map(float, scores)), _subset(row))


def m_rewardbench(row: Row) -> Comparison:
    """A row in RewardBench's columns.

    M-RewardBench has RewardBench's subset in `source`, its section in `category`; the latter and the
    `language` are groups.
    """
    item = comparison(row)
    grouped = ["domain", "language"]
    if row.find("subset") is None and isinstance(row.find("category"), str):
        subset = "source" if isinstance(row.find("source"), str) else "category"
        item = replace(item, subset=row.text(subset))
        grouped += ["category"] if subset == "source" else []
    groups = {name: row.text(name) for name in grouped if isinstance(row.find(name), str)}
    return replace(item, groups=groups) if groups else item


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
            fix="correct the domain; if the file is not RM-Bench, rename its column `domain` to `subset`",
        )
    item = choice(row)
    for column, answers in (("chosen", item.chosen), ("rejected", item.rejected)):
        if len(answers) != len(STYLES):
            raise DataError(
                f"{row.place}: column {column!r} has {len(answers)} answers, one a style is needed",
                allowed=f"{len(STYLES)} answers, in this order: {', '.join(STYLES)}",
                fix=CORRECT_ROW,
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
        raise row.wrong_item(
            "scores", f"a finite number for each of the {len(responses)} responses", is_number
        )
    rules.require_prompt(prompt)
    if len(responses) < 2:
        raise rules.UnusableRowError(FEW_RESPONSES)
    return Candidates(prompt, responses, tuple(map(float, scores)), _subset(row))


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


KINDS: Mapping[Schema, Kind] = {"judgebench": "pairs", "ppe": "pairs", "best-of-k": "best-of-n"}
"""The kind of a schema that has another name."""


def _is_score(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value)


def _is_list_of_answers(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict) for item in value)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise row.wrong_item(column, "a list of strings", lambda item: isinstance(item, str))
    return tuple(value)


def _subset(row: Row) -> str:
    return "all" if row.find("subset") is None else row.text("subset")
