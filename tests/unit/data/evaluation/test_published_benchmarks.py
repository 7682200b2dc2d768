from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import Candidates, Comparison, Message
from rlhf.data import comparisons
from rlhf.data.evaluation import benchmarks
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.sources.rows import Row

PROMPT = (Message("user", "q"),)
JUDGEBENCH = {
    "pair_id": "x",
    "source": "livebench-math",
    "question": "q",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
}
PPE = {
    "question_id": "1",
    "prompt": "q",
    "response_1": "a",
    "response_2": "b",
    "winner": "model_a",
    "language": "en",
}
BEST = {
    "prompt": "q",
    **{f"response_{n}": f"answer {n}" for n in range(1, 13)},
    "scores": [True] + [False] * 11,
}
LANGUAGE = {"prompt": "q", "chosen": "a", "rejected": "b", "language": "ind_Latn", "category": "Chat"}


def load(tmp_path: Path, *rows: dict[str, Any]) -> benchmarks.Benchmark:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_benchmark(str(path))


def test_judgebench(tmp_path: Path) -> None:
    result = load(tmp_path, JUDGEBENCH, {**JUDGEBENCH, "label": "A>B", "source": "mmlu-pro-law"})
    assert result.items == [Comparison(PROMPT, "b", "a", "math"), Comparison(PROMPT, "a", "b", "knowledge")]


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({"mmlu-pro-law": 154, "livebench-reasoning": 98, "livebench-math": 56}, "Without coding"),
        ({"mmlu-pro-law": 1, "livebench-reasoning": 1, "livebench-math": 1, "livecodebench": 1}, "350 (gpt)"),
        ({"mmlu-pro-law": 154, "livebench-reasoning": 98, "livebench-math": 56, "livecodebench": 42}, None),
    ],
)
def test_a_part_of_judgebench_is_called_so(tmp_path: Path, counts: dict[str, int], note: str | None) -> None:
    rows = [{**JUDGEBENCH, "source": source} for source, count in counts.items() for _ in range(count)]
    notes = load(tmp_path, *rows).notes
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_ppe_drops_ties_and_keeps_the_language(tmp_path: Path) -> None:
    result = load(tmp_path, PPE, {**PPE, "winner": "model_b"}, {**PPE, "winner": "tie (bothbad)"})
    assert [(item.chosen, item.rejected, item.groups) for item in result.items] == [
        ("a", "b", {"language": "en"}),
        ("b", "a", {"language": "en"}),
    ]
    assert result.drops.reasons.total() == 1


def test_best_of_k_keeps_the_order_of_numbers(tmp_path: Path) -> None:
    (item,) = load(tmp_path, BEST).items
    assert item == Candidates(PROMPT, tuple(f"answer {n}" for n in range(1, 13)), (1.0,) + (0.0,) * 11, "all")


def test_m_rewardbench_keeps_language_and_category(tmp_path: Path) -> None:
    (item,) = load(tmp_path, LANGUAGE).items
    assert (item.subset, item.groups) == ("Chat", {"language": "ind_Latn"})
    (item,) = load(tmp_path, {**LANGUAGE, "source": "mt-bench-easy"}).items
    assert (item.subset, item.groups) == ("mt-bench-easy", {"language": "ind_Latn", "category": "Chat"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**JUDGEBENCH, "label": "A=B"}, "label"),
        ({**JUDGEBENCH, "source": "gsm8k"}, "source"),
        ({**PPE, "winner": "model_c"}, "winner"),
        ({**BEST, "scores": [True]}, "scores"),
        ({**BEST, "scores": [float("nan")] + [False] * 11}, "scores.*nan"),
        ({**BEST, "scores": [None] + [False] * 11}, "scores"),
        ({**JUDGEBENCH, "label": None}, "label"),
        ({name: value for name, value in BEST.items() if name != "response_2"}, "response_1 to response_K"),
    ],
)
def test_a_row_that_is_not_in_the_schema(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)rows\.jsonl:1: .*{message}"):
        load(tmp_path, row)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("judgebench", ("ScalerLab/JudgeBench", None, "gpt")),
        ("ppe", ("lmarena-ai/PPE-Human-Preference-V1", None, "test")),
        ("ppe-mmlu-pro", ("lmarena-ai/PPE-MMLU-Pro-Best-of-K", None, "train")),
        ("m-rewardbench/ind_Latn", ("CohereLabsCommunity/multilingual-reward-bench", "ind_Latn", "test")),
    ],
)
def test_names_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str, source: tuple[str, str | None, str]
) -> None:
    asked = []

    def read_rows(source: Any, *, seed: int) -> Iterator[Row]:
        asked.append((source.path, source.config_name, source.split))
        return iter([Row("here", LANGUAGE)])

    monkeypatch.setattr(benchmarks, "read_rows", read_rows)
    monkeypatch.setattr(comparisons, "read_rows", read_rows)
    load_benchmark(name)
    assert set(asked) == {source}
