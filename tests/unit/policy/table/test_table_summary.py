"""The table's numbers from made-up evaluations, best of n, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.evaluation.held_out import Answer
from policy.table.evaluate import best_of_figures, evaluation_file, policy_figures
from policy.table.page import lead, markdown, tables, write
from policy.table.rows import BASE, BEST_OF, CLAIMS, ROWS, TRAINED
from policy.table.summary import read_paths, summarise
from reward.evaluation.best_of_n import sizes_to
from reward.evaluation.winrate import kl_bound
from rlhf.config.policy_table import TableEvaluation

P = 40
WINS = {"dpo-regular": 0.55, "dpo-margin": 0.5, "dpo-scaled": 0.56, "ppo": 0.6, "reinforce": 0.8}
"""Win rate of each row as trained, at 2 nats; PPO ends at 0.2."""


def figures(win: float, seed: int) -> dict[str, list[float]]:
    noise = np.random.default_rng(seed).normal(0, 0.02, P)
    values = (win + noise).tolist()
    return {"win": values, "held_out": values, "reward": values, "length": [30.0] * P, "kl": [0.0] * P}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        (folder / "evaluation").mkdir(parents=True)
        best = [
            {"scale": n, "kl": kl_bound(n), "figures": figures(0.5 + 0.02 * n - 0.02, seed)}
            for n in (1, 2, 4, 8)
        ]
        evaluation_file(folder, BASE).write_text(json.dumps({"points": best}))
        for row in TRAINED:
            end = 0.2 if row == "ppo" else 2.0
            points = [{"scale": 1.0, "kl": end, "figures": figures(WINS[row], seed)}]
            if row == "reinforce":
                points.append({"scale": 0.7, "kl": 1.0, "figures": figures(0.7, seed)})
            evaluation_file(folder, row).write_text(json.dumps({"points": points}))
    return tmp_path


def summary_of(table: Path) -> dict[str, Any]:
    return summarise(read_paths(table, [0, 1]), [0, 1], TableEvaluation(best_of=8))


def test_rows_at_equal_kl_and_as_trained(table: Path) -> None:
    summary = summary_of(table)
    assert list(summary["equal_kl"]) == list(summary["trained"]) == list(ROWS)
    equal, trained = summary["equal_kl"], summary["trained"]
    # REINFORCE has a point at 1 nat; DPO is half way from the base's 0.5 to 0.55 at 2 nats.
    assert equal["reinforce"]["win"]["mean"] == pytest.approx(0.7, abs=0.01)
    assert equal["dpo-regular"]["win"]["mean"] == pytest.approx(0.525, abs=0.01)
    assert equal["dpo-regular"]["scale"] == pytest.approx([0.5, 0.5])
    assert trained["reinforce"]["win"]["mean"] == pytest.approx(0.8, abs=0.01)
    assert trained["reinforce"]["kl"] == 2.0
    assert equal["ppo"] == {"reached": 0} and trained["ppo"]["kl"] == pytest.approx(0.2)
    # 1 nat lies between the bounds of n = 4 and n = 8, whose means are 0.56 and 0.64.
    weight = (1 - kl_bound(4)) / (kl_bound(8) - kl_bound(4))
    assert equal[BEST_OF]["win"]["mean"] == pytest.approx(0.56 + 0.08 * weight, abs=0.01)
    assert trained[BEST_OF]["kl"] == pytest.approx(kl_bound(8))
    low, high = equal["reinforce"]["win"]["ci95"]
    assert low < equal["reinforce"]["win"]["mean"] < high
    assert equal["reinforce"]["gain"]["reward"]["mean"] == pytest.approx(0.2, abs=0.01)


def test_claims(table: Path) -> None:
    claims = {claim["sentence"]: claim for claim in summary_of(table)["claims"]}
    assert claims["REINFORCE beats scaled DPO"]["win"]["verdict"] == "holds"
    assert claims["REINFORCE beats scaled DPO"]["paper"] == 32.1
    assert claims["REINFORCE beats PPO"]["win"] is None, "PPO did not reach this KL"
    assert {claim.better for claim in CLAIMS} | {claim.worse for claim in CLAIMS} <= set(ROWS)


def test_the_page(table: Path) -> None:
    summary = summary_of(table)
    page = write(table, summary).read_text()
    assert "The paper&#39;s policy table" in page
    text = markdown(summary)
    assert "| PPO | - | - |" in text and "not reached" in text and "at most 1.20" in text
    assert all(len({len(row) for row in rows}) == 1 for rows in tables(summary).values())
    assert "REINFORCE" in lead(summary)[0] and "PPO" in lead(summary)[1]
    assert (table / "table.svg").exists()
    assert json.loads((table / "table.json").read_text())["kl"] == 1.0


def answer(reward: float, held_out: float, gold: float | None = None, length: int = 3) -> Answer:
    return Answer("text", reward, gold, 0.5, length, True, held_out)


def test_best_of_n_picks_by_the_reward_and_is_judged_by_the_other() -> None:
    candidates = [[answer(1.0, 5.0, length=2), answer(2.0, -5.0, length=6)]]
    opponents = [[answer(0.0, 0.0), answer(0.0, 6.0)]]
    one, two = (best_of_figures(candidates, opponents, n) for n in (1, 2))
    # The first beats one of two opponents, the second none; best of 2 is the second.
    assert (one["win"], two["win"]) == ([0.25], [0.0])
    assert (one["length"], two["length"]) == ([4.0], [6.0])
    assert (two["reward"], two["held_out"], two["kl"]) == ([2.0], [-5.0], [kl_bound(2)])
    assert "gold" not in one
    assert sizes_to(8) == [1, 2, 4, 8] and sizes_to(6) == [1, 2, 4, 6] and sizes_to(1) == [1]


def test_figures_of_a_policy() -> None:
    found = policy_figures([[answer(1.0, 1.0, gold=1.0), answer(3.0, 0.0, gold=0.0)]], [[0.0, 0.5]])
    # 1.0 beats both; 0.0 ties with one and loses to the other.
    assert found["win"] == [pytest.approx((2 + 0.5) / 4)]
    assert (found["reward"], found["gold"], found["kl"]) == ([2.0], [0.5], [0.5])
