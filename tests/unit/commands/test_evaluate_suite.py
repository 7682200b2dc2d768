"""`rlhf evaluate-reward --suite` and `--judge`, as typed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from reward.evaluation.benchmarks.published import PUBLISHED
from reward.judge.client import Completion, JudgeClient
from rlhf.config.judge import JudgeConfig
from rlhf.config.load import load_config
from rlhf.data.evaluation.suite import SUITE, suite_members
from rlhf.terminal.benchmarks import print_overall

Rlhf = Callable[..., Result]
ROOT = Path(__file__).parents[3]

JUDGEBENCH = {
    "source": "mmlu-pro-law",
    "question": "q",
    "response_A": "+",
    "response_B": "...",
    "label": "A>B",
}
REWARDBENCH_2 = [
    {"id": "1", "prompt": "q", "chosen": ["++"], "rejected": ["+", ".", ".."], "subset": "Math"},
    {"id": "2", "prompt": "q", "chosen": ["+"], "rejected": ["++", ".", "..."], "subset": "Math"},
    {"id": "ref:1", "prompt": "q", "chosen": ["++"], "rejected": ["."], "subset": "Ties"},
    {"id": "tied:1", "prompt": "q", "chosen": ["++", "+ +"], "rejected": ["."], "subset": "Ties"},
]
BEST_OF_K = {
    "prompt": "q",
    "response_1": "+",
    "response_2": ".",
    "response_3": "....",
    "scores": [True, False, False],
}
LANGUAGE = {
    "prompt": "q",
    "chosen": "+",
    "rejected": ".",
    "language": "ind_Latn",
    "chosen_model": "a",
    "rejected_model": "b",
    "subset": "Chat",
}


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "b/judgebench/data/gpt.jsonl", JUDGEBENCH)
    write(tmp_path / "b/judgebench/data/claude.jsonl", {**JUDGEBENCH, "label": "B>A"})
    write(tmp_path / "b/rb2.jsonl", *REWARDBENCH_2)
    write(tmp_path / "b/PPE-MBPP-Plus/test.jsonl", BEST_OF_K)
    write(tmp_path / "b/indonesian.jsonl", LANGUAGE)
    write(tmp_path / "b/mine.jsonl", {"prompt": "q", "chosen": "+", "rejected": "."})
    write(tmp_path / "b/alpaca.jsonl", {"instruction": "q", "input": "", "chosen": "+", "rejected": "."})
    write(tmp_path / "b/broken.jsonl", {"prompt": "q"})
    (tmp_path / "b/README.md").write_text("x")
    return tmp_path


def test_files_are_recognised_by_their_columns(folder: Path) -> None:
    members, missing = suite_members(str(folder / "b"))
    assert [member.name for member in members] == [
        "rewardbench-2",
        "judgebench",
        "judgebench-claude",
        "ppe-mbpp-plus",
        "m-rewardbench/ind_Latn",
        "alpaca.jsonl",
        "broken.jsonl",
        "mine.jsonl",
    ]
    assert {"rm-bench", "ppe", "rewardbench"} <= missing.keys()
    assert "judgebench" not in missing


def test_shards_are_one_benchmark(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for number in range(2):
        pandas.DataFrame([JUDGEBENCH]).to_parquet(tmp_path / f"gpt-0000{number}-of-00002.parquet")
    ((member,), _) = suite_members(str(tmp_path))
    assert (member.name, Path(member.path).name) == ("judgebench", "gpt-*-of-00002.parquet")


@pytest.mark.usefixtures("scorer")
def test_one_table_and_one_file(rlhf: Rlhf, folder: Path) -> None:
    result = rlhf("evaluate-reward", "model", "--suite", "--data", "b", "--output", "suite.json")
    assert result.exit_code == 0, result.output
    written = json.loads((folder / "suite.json").read_text())
    benchmarks = written["benchmarks"]
    # Math: one of two. Ties: acc, ref and both margins hold, and the margin over a spread of 1 is 1: tanh(0)
    # = 0.
    # tied: rewards 2 and 2, wrong 0: spread 0, so the bonus is 1 and the score 1.01.
    assert benchmarks["rewardbench-2"]["overall"] == pytest.approx((0.5 + 1.01) / 2)
    assert benchmarks["judgebench"]["headline"] == {
        "score": 1.0,
        "interval": pytest.approx([1 / (1 + 1.96**2), 1.0], abs=1e-3),
        "longest": 0.0,
        "shortest": 1.0,
    }
    assert benchmarks["judgebench-claude"]["overall"] == 0.0
    best = benchmarks["ppe-mbpp-plus"]["headline"]
    assert (best["score"], best["longest"], best["shortest"]) == (1.0, 0.0, 0.5)
    assert benchmarks["mine.jsonl"]["overall"] == 1.0
    assert next(row["score"] for row in benchmarks["judgebench"]["published"]) == 87.4
    assert "no layout of preferences: prompt" in written["missing"]["broken.jsonl"]
    assert set(SUITE) <= benchmarks.keys() | written["missing"].keys()
    assert "Llama-3.3-Nemotron-70B-Reward" in result.stdout
    assert "Missing: broken.jsonl" in result.stdout
    assert "alpaca.jsonl: read as Alpaca pairs" in result.stdout
    assert "judgebench: Without reasoning, math, coding" in result.stdout
    assert benchmarks["judgebench"]["notes"][0].startswith("Without reasoning, math, coding")
    # No name is cut in a terminal of 80 columns, and the missing languages are counted.
    assert "m-rewardbench/ind_Latn" in result.stdout and "…" not in result.stdout
    assert "m-rewardbench/LANGUAGE (22 languages)" in result.stdout


def test_an_unusable_score_fails_its_benchmark_alone(rlhf: Rlhf, folder: Path, scorer: Any) -> None:
    scorer.reward = lambda text: float("nan") if text == "...." else float(text.count("+"))
    result = rlhf("evaluate-reward", "model", "--suite", "--data", "b", "--output", "suite.json")
    assert result.exit_code == 1
    assert "ppe-mbpp-plus" in result.stderr
    written = json.loads((folder / "suite.json").read_text())
    assert "mine.jsonl" in written["benchmarks"]
    assert "nan" in written["missing"]["ppe-mbpp-plus"]


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize(
    "words",
    [
        ["model", "--suite", "--data", "b/rb2.jsonl"],
        ["model", "--suite", "--data", "nowhere"],
        ["model", "--suite", "--data", "."],
        ["--data", "demo"],
        ["model", "--judge", "judge.yaml"],
    ],
)
def test_what_cannot_be_evaluated(rlhf: Rlhf, tmp_path: Path, words: list[str]) -> None:
    write(tmp_path / "b/rb2.jsonl", *REWARDBENCH_2)
    if words[-1] == ".":
        (tmp_path / "b/rb2.jsonl").unlink()
    result = rlhf("evaluate-reward", *words)
    assert (result.exit_code, "Traceback" in result.output) == (2, False), result.output


@pytest.fixture
def by_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that counts "+", and prefers the response shown first where the counts are equal."""

    def complete(self: JudgeClient, requests: Sequence[str]) -> list[Completion]:
        texts = []
        for request in requests:
            first, second = (
                request.split(f"[Response {n}]\n")[1].split("\n[End")[0].count("+") for n in (1, 2)
            )
            texts.append(f"\\boxed{{{first + 1}, {second + 1}}} \\boxed{{{1 if first >= second else 6}}}")
        return [Completion(text) for text in texts]

    monkeypatch.setattr(JudgeClient, "complete", complete)
    monkeypatch.setattr(JudgeClient, "check", lambda self: None)


@pytest.mark.usefixtures("by_plus")
def test_a_judge_on_one_benchmark_and_on_the_suite(rlhf: Rlhf, folder: Path) -> None:
    judge = str(ROOT / "configs/judge/vllm.yaml")
    result = rlhf("evaluate-reward", "--judge", judge, "--data", "b/mine.jsonl", "--output", "eval.json")
    assert result.exit_code == 0, result.output
    written = json.loads((folder / "eval.json").read_text())
    assert (written["overall"], written["judge"]["order_agreement"]) == (1.0, 1.0)
    assert "Position bias" in result.stdout
    assert "Calibration" not in result.stdout
    result = rlhf("evaluate-reward", "--judge", judge, "--suite", "--data", "b", "--output", "suite.json")
    assert result.exit_code == 0, result.output
    benchmarks = json.loads((folder / "suite.json").read_text())["benchmarks"]
    assert benchmarks["judgebench"]["judge"]["requests"] == 2, "counted for each benchmark by itself"
    assert benchmarks["rewardbench-2"]["subsets"]["Math"]["accuracy"] == 0.5


def test_the_example_is_a_judge() -> None:
    assert load_config(ROOT / "configs/judge/vllm.yaml", JudgeConfig).pairing == "all"


def test_the_table_at_the_end_of_a_run_has_both_baselines_of_length() -> None:
    result = {
        "overall": 0.75,
        "count": 4,
        "intervals": {"overall": [0.301, 0.954]},
        "length_baseline": 0.26,
        "shortest_baseline": 0.74,
        "notes": [],
    }
    console = Console(width=80, record=True, file=io.StringIO())
    print_overall({"held out": result}, console)
    (row,) = (line for line in console.export_text().splitlines() if "held out" in line)
    assert re.findall(r"[\d.]+", row) == ["4", "75.0", "30.1", "95.4", "26.0", "74.0"]


def test_published_scores_have_a_benchmark_and_a_source() -> None:
    assert {row.benchmark for row in PUBLISHED} <= set(SUITE)
    assert all(row.source and 0 < row.score < 100 for row in PUBLISHED)
