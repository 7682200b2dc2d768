from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from reward.evaluation.paper_table import (
    CLAIMS,
    JUSTIFIER,
    ROWS,
    ROWS_WITH_JUSTIFIER,
    correct_RSP,
    draw,
    judge_justifier,
    markdown,
    summarise,
    train_table,
)
from reward.judge.client import Completion
from reward.judge.judge import Judge
from reward.training.data import RewardData
from rlhf.config.judge import JudgeConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import DataError
from rlhf.core.records import Comparison, Message
from rlhf.data.drops import DropReport


def write_run(run: Path, correct: Sequence[bool], *, benchmark: int = 0, length: int = 5) -> None:
    """Write a run's eval.json and eval_rows.jsonl, with `benchmark` rows before the held-out ones."""
    run.mkdir(parents=True)
    rows = [
        {"id": number, "subset": "s", "correct": right, "length_chosen": length, "length_rejected": number}
        for number, right in enumerate((*[False] * benchmark, *correct), 1 - benchmark)
    ]
    values = {"count": len(correct)}
    (run / "eval.json").write_text(
        json.dumps({"count": benchmark, "held_out": values} if benchmark else values)
    )
    (run / "eval_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_are_trained_in_an_order_in_which_each_finds_what_it_starts_from(tmp_path: Path) -> None:
    asked: list[tuple[str, int, Path | None]] = []

    def train(name: str, seed: int, output: Path, start: Path | None) -> None:
        assert start is None or (start.parent / "eval.json").exists()
        asked.append((name, seed, start))
        write_run(output, [True])

    def extrapolate(weak: Path, strong: Path, seed: int, output: Path) -> None:
        assert (weak.name, strong.name) == ("regression-helpfulness", "helpfulness-bt-scaled")
        assert (strong / "eval.json").exists()
        write_run(output, [True])

    lines: list[str] = []
    train_table(tmp_path, [3, 4], train=train, extrapolate=extrapolate, say=lines.append)
    assert len(asked) == 2 * (len(ROWS) - 1)  # ExPO trains nothing
    start = tmp_path / "seed-4" / "regression-helpfulness" / "final"
    assert ("helpfulness-bt-margin", 4, start) in asked and ("bt-margin", 4, None) in asked
    asked.clear()
    train_table(tmp_path, [3, 4], train=train, extrapolate=extrapolate, say=lines.append)
    assert not asked  # what is there stays
    half = tmp_path / "seed-3" / "bt-margin"
    (half / "eval.json").write_text(json.dumps({"failures": [{"step": "the held-out pairs", "reason": "r"}]}))

    def again(name: str, seed: int, output: Path, start: Path | None) -> None:
        assert output == half and (name, seed, start) == ("bt-margin", 3, None)
        asked.append((name, seed, start))

    train_table(tmp_path, [3, 4], train=again, extrapolate=extrapolate, say=lines.append)
    assert len(asked) == 1  # a row whose evaluation failed is not done


def test_only_held_out_rows_count_and_all_runs_share_their_pairs(tmp_path: Path) -> None:
    for name in ROWS:
        write_run(tmp_path / "seed-0" / name, [True, name == "hybrid", False], benchmark=2, length=2)
    right_RSP, longer, prompts_P = correct_RSP(tmp_path, [0])
    assert right_RSP.shape == (len(ROWS), 1, 3)
    assert right_RSP[list(ROWS).index("hybrid")].tolist() == [[1.0, 1.0, 0.0]]
    assert right_RSP[0].tolist() == [[1.0, 0.0, 0.0]]
    assert prompts_P == [0, 1, 2]  # rows without numbers of prompts: each pair has its own
    assert longer == pytest.approx(1 / 3)  # lengths 2 against 1, 2 and 3
    other = tmp_path / "other" / "seed-0"
    for name in ROWS:
        write_run(other / name, [True], length=7 if name == "hybrid" else 5)
    with pytest.raises(DataError, match="pairs"):
        correct_RSP(tmp_path / "other", [0])


def test_the_justifier_has_a_row_where_it_is_given(tmp_path: Path) -> None:
    for name in ROWS:
        write_run(tmp_path / "seed-0" / name, [True, False])
    (tmp_path / "seed-0" / JUSTIFIER).mkdir()
    seeds: list[int] = []

    def justify(seed: int, output: Path) -> None:
        seeds.append(seed)
        output.rmdir()
        write_run(output, [False, True])

    def unused(*_: object) -> None:
        raise AssertionError("every other row is finished")

    lines: list[str] = []
    train_table(tmp_path, [0], train=unused, extrapolate=unused, justify=justify, say=lines.append)
    assert seeds == [0] and len(lines) == len(ROWS) + 1
    names = list(ROWS_WITH_JUSTIFIER)
    right_RSP, longer, prompts_P = correct_RSP(tmp_path, [0], names)
    summary = summarise(right_RSP, longer, prompts_P, [0], names)
    assert summary["rows"][JUSTIFIER]["paper"] == 90.0
    assert summary["rows"][JUSTIFIER]["accuracy"] == 0.5
    assert right_RSP[-1].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("readable", [True, False])
def test_a_pair_that_a_justifier_does_not_decide_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """Scripted verdicts on four pairs: both orders right; both wrong; orders that disagree; one unread."""
    pairs = [Comparison((Message("user", str(n)),), "good", "bad, and long", subset="s") for n in range(4)]
    better, worse = "@Response {} is better than @Response {}.", "no verdict"
    first, second = better.format(1, 2), better.format(2, 1)
    texts = {("0", 1): first, ("0", 2): second, ("1", 1): second, ("1", 2): first}
    texts |= {("2", 1): first, ("2", 2): first, ("3", 1): worse, ("3", 2): second}

    class Scripted:
        def complete(self, requests: Sequence[str]) -> list[Completion]:
            places = [(text[0], 1 if text.index("good") < text.index("bad") else 2) for text in requests]
            return [Completion(texts[place] if readable else "", 1, 1, 0.0) for place in places]

    config = JudgeConfig(url="http://localhost", model="m", form="justifier", pairing="all")
    judge = Judge(config, client=Scripted())
    monkeypatch.setattr("reward.justifier.evaluation.load_justifier", lambda _: judge)
    monkeypatch.setattr("reward.evaluation.paper_table.load_chat", lambda _: None)
    monkeypatch.setattr(
        "reward.evaluation.paper_table.load_data", lambda *_: RewardData([], [], pairs, DropReport())
    )
    judge_justifier(RewardConfig.model_construct(), tmp_path, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "eval_rows.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [readable, False, False, False]
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    result = json.loads((tmp_path / "eval.json").read_text())
    assert (result["count"], result["read"]) == ((4, 3) if readable else (4, 0))
    assert [entry["count"] for entry in result["drops"]["dropped"].values()] == [1 if readable else 4]


def test_a_claim_holds_fails_or_stays_open_by_its_paired_interval() -> None:
    right_RSP = np.zeros((len(ROWS), 2, 100))
    index = {name: number for number, name in enumerate(ROWS)}
    right_RSP[index["bt-scaled"], :, :50] = 1
    right_RSP[index["bt-regular"], :, :10] = 1
    right_RSP[index["bt-margin"], :, 1:51] = 1  # one pair won, one lost
    right_RSP[index["helpfulness-bt-scaled"], :, :10] = 1
    summary = summarise(right_RSP, 0.4, range(right_RSP.shape[2]), [0, 1])
    claims = {claim["sentence"]: claim for claim in summary["claims"]}
    assert claims["Scaled beats regular"]["verdict"] == "holds"
    assert claims["Scaled beats regular"]["difference"] == pytest.approx(0.4)
    assert claims["Scaled beats regular"]["paper"] == pytest.approx(92.7 - 91.5)
    assert claims["Scaled beats margin"]["verdict"] == "open"
    assert claims["A start from helpfulness beats a fresh one"]["verdict"] == "does not hold"
    two_prompts = summarise(right_RSP, 0.4, [pair // 50 for pair in range(100)], [0, 1])["claims"]
    (scaled,) = [claim for claim in two_prompts if claim["sentence"] == "Scaled beats regular"]
    assert scaled["verdict"] == "open" and scaled["difference"] == pytest.approx(0.4)
    assert {claim.better for claim in CLAIMS} | {claim.worse for claim in CLAIMS} <= ROWS.keys()


def test_the_table_and_the_picture_say_the_same(tmp_path: Path) -> None:
    right_RSP = np.zeros((len(ROWS), 1, 8))
    right_RSP[list(ROWS).index("hybrid"), :, :6] = 1
    summary = summarise(right_RSP, 0.625, range(right_RSP.shape[2]), [0])
    text = markdown(summary)
    assert "| Hybrid: regression and scaled at once | 75.0 |" in text
    assert "| The longer answer | 62.5 |" in text
    assert "| Helpfulness, then scaled, ExPO | 0.0 | 0.0 to 0.0 | 0.0 | 94.1 |" in text
    draw(summary, tmp_path / "table.svg")
    svg = (tmp_path / "table.svg").read_text()
    assert svg.count("<svg") == 1 and "the longer answer" in svg
