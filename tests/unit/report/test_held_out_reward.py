"""A held-out reward on the page: what it says of the gain, and where it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.report import write_report
from rlhf.report.page import _reward_folder
from rlhf.report.verdict import policy_verdict

S = "\N{NO-BREAK SPACE}"
UP, DOWN, SAME = (0.0, 1.0, 0.5, 1.5), (1.0, 0.0, -1.5, -0.5), (0.0, 0.1, -0.5, 0.7)


def evaluation(**result: tuple[float, float, float, float]) -> dict[str, Any]:
    """name -> (before, after, low, high)."""
    return {
        "before": {name: item[0] for name, item in result.items()},
        "after": {name: item[1] for name, item in result.items()},
        "difference": {
            name: {"mean": item[1] - item[0], "ci95": list(item[2:])} for name, item in result.items()
        },
    }


def test_up_while_the_held_out_reward_falls_is_reward_hacking() -> None:
    verdict = policy_verdict(evaluation(reward=UP, held_out=DOWN))
    assert (verdict.tone, verdict.label) == ("bad", "Warning: reward hacking")
    assert verdict.sentence == (
        f"Reward rose from 0.0 to 1.0 (+1.0, 95{S}% interval 0.5 to 1.5) while the held-out reward "
        "fell from 1.0 to 0.0 "
        f"(\N{MINUS SIGN}1.0, 95{S}% interval \N{MINUS SIGN}1.5 to \N{MINUS SIGN}0.5)."
    )
    assert "exploits its training reward" in verdict.more[0]


@pytest.mark.parametrize(
    ("reward", "held_out", "tone", "text"),
    [
        (UP, UP, "good", "was not trained on rose too"),
        (UP, SAME, "open", "Only the training reward rose"),
        (DOWN, UP, "bad", "The held-out reward rose from 0.0 to 1.0"),
        (SAME, DOWN, "flat", "The held-out reward fell from 1.0 to 0.0"),
    ],
)
def test_remarks(reward: Any, held_out: Any, tone: str, text: str) -> None:
    verdict = policy_verdict(evaluation(reward=reward, held_out=held_out))
    assert verdict.tone == tone and "hacking" not in verdict.label
    assert text in " ".join(verdict.more)


def test_beside_a_gold_score_which_has_the_last_word() -> None:
    verdict = policy_verdict(evaluation(reward=UP, held_out=DOWN, gold=UP))
    assert verdict.label == "It worked"
    assert verdict.more[-1].startswith("The reward rose while the held-out reward fell")
    agreed = policy_verdict(evaluation(reward=UP, held_out=UP, gold=UP))
    assert agreed.more[-1].startswith("The held-out reward rose from 0.0 to 1.0")


def test_the_page_draws_it(policy_run: Path) -> None:
    lines = [json.loads(line) for line in (policy_run / "metrics.jsonl").read_text().splitlines()]
    plain = write_report(policy_run).read_text()
    for number, line in enumerate(lines):
        line |= {"reward/held_out": 2.0 - 0.01 * number, "reward/missing": 0, "reward/brevity": 0.5}
    (policy_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    watched = write_report(policy_run).read_text()
    assert "Held-out reward" in watched and "Held-out reward" not in plain
    assert "reward/brevity" in watched and "without a reward" not in watched  # none is missing
    lines[3]["reward/missing"] = 2
    (policy_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Answers without a reward" in write_report(policy_run).read_text()


def test_whose_evaluation_is_shown() -> None:
    assert _reward_folder("runs/r/final") == "runs/r/final"
    several = [{"adapter": None, "function": "gold"}, {"adapter": "a"}, {"adapter": "b"}]
    assert _reward_folder(several) == "a"
    assert _reward_folder(several[:1]) is None is _reward_folder(None)
