"""The page as text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import OutputError
from rlhf.report import write_report
from rlhf.report.files import read_run
from rlhf.report.policy import pairs, policy_charts, sampled, tally

HOSTILE = """<script>alert("x")</script>' " </pre>"""


def text_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_pairs_are_ranked_by_gold_then_reward_and_counted() -> None:
    def row(name: str, gold: float | None, reward: float) -> dict[str, Any]:
        before = {"answer": "", "gold": None if gold is None else 0.0, "reward": 0.0}
        return {"prompt": name, "before": before, "after": {"answer": "", "gold": gold, "reward": reward}}

    rows = [
        row("none", None, 9),
        row("down", -1, 5),
        row("up", 1, 0.1),
        row("up more", 1, 0.2),
        row("same", 0, 3),
    ]
    result = pairs({"answers": rows})
    assert [pair.prompt[0][1] for pair in result] == ["up more", "up", "same", "down", "none"]
    assert tally(result) == {"better": 2, "same": 1, "worse": 1}
    assert result[0].changes == [("gold", "+1.00", "better"), ("reward", "+0.20", "better")]


def test_every_curve_of_a_policy_is_there(policy_run: Path) -> None:
    charts, shown = policy_charts(read_run(policy_run))
    assert [chart.title for chart in charts] == [
        "Reward",
        "Gold score",
        "KL per token",
        "KL per answer",
        "Length",
        "Finished answers",
        "Entropy",
        "Engine against trainer",
        "Time",
        "Gradient norm",
    ]
    time = charts[8]
    assert [line.name for line in time.drawn] == ["rollout", "score", "update", "sync", "other"]
    page = text_of(policy_run)
    assert "kl/abs_mean" not in shown
    assert '<span class="name">kl/abs_mean</span>' in page, "every other metric has its curve too"


def test_the_header_names_the_start(policy_run: Path) -> None:
    assert "Started from" not in text_of(policy_run)
    with (policy_run / "config.yaml").open("a") as file:
        file.write("start: runs/first/final\n")
    assert "runs/first/final" in re.findall(r"Started from.*?</d[dl]>", text_of(policy_run), re.DOTALL)[0]


def test_a_critic_has_its_curves(policy_run: Path) -> None:
    file = policy_run / "metrics.jsonl"
    critic = {
        "return/mean": 1.5,
        "value/mean": 1.0,
        "value/explained_variance": -0.25,
        "ratio/clipped_share": 0.1,
    }
    rows = [json.loads(line) | critic for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts, shown = policy_charts(read_run(policy_run))
    titles = [chart.title for chart in charts]
    later = titles[titles.index("Entropy") + 1 :]
    assert later[:3] == ["Value", "Explained variance of the critic", "Clipped"]
    assert critic.keys() <= shown


def test_sampled_answers_span_the_range_of_rewards(policy_run: Path) -> None:
    run = read_run(policy_run)
    rewards = sorted(row["reward"] for row in run.samples[60])
    last = sampled(run)[-1]
    assert (last.step, last.total, len(last.shown)) == (60, 8, 6)
    facts = [dict(side.facts)["reward"].replace("\N{MINUS SIGN}", "-") for _, side in last.shown]
    assert (facts[0], facts[-1]) == (f"{rewards[0]:.2f}", f"{rewards[-1]:.2f}")


def test_all_text_is_escaped(
    tmp_path: Path, make_policy: Callable[..., Path], evaluate: Callable[..., dict[str, Any]]
) -> None:
    result = evaluate()
    result["answers"][0]["prompt"] = [{"role": HOSTILE, "content": HOSTILE}]
    result["answers"][0]["before"]["answer"] = result["answers"][1]["after"]["answer"] = HOSTILE
    run = make_policy(tmp_path / "run", evaluation=result)
    scripts = text_of(make_policy(tmp_path / "harmless", evaluation=evaluate())).count("<script>")
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    (run / "config.yaml").write_text(
        json.dumps({"reward": HOSTILE, "model": {"base": HOSTILE}}), encoding="utf-8"
    )
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 61, HOSTILE: 1.0, "stage": HOSTILE}) + "\n")
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 61, "prompt": HOSTILE, "answer": HOSTILE, "reward": 1.0}) + "\n")
    page = text_of(run)
    assert page.count("<script>") == scripts
    assert page.count("</script>") == scripts + 1  # and that of the samples' data
    assert "alert(" in page
    assert 'alert("' not in page
    assert not re.search(r"""=['"][^'"<>]*<""", page), "nothing breaks out of an attribute"


def test_the_page_refers_to_nothing_outside(policy_run: Path, reward_run: Path) -> None:
    for run in (policy_run, reward_run):
        page = text_of(run)
        assert not re.search(r"https?://|url\(|@import|srcset|<iframe|<base", page)
        assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
        assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_young_run_says_what_is_missing(policy_run: Path) -> None:
    (policy_run / "eval.json").unlink()
    (policy_run / "environment.json").unlink()
    rows = (policy_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (policy_run / "metrics.jsonl").write_text("".join(rows[:20]) + rows[20][:50], encoding="utf-8")
    page = text_of(policy_run)
    for sentence in (
        "No verdict yet",
        "20 steps are logged.",
        "eval.json is not there",
        "environment.json is not there",
        "The run stands at step 20 of 60",
        "first at metrics.jsonl:21",
        "Answers from training",
    ):
        assert sentence in page
    assert "Before and after" not in page


def test_an_evaluation_before_training_only(policy_run: Path) -> None:
    (policy_run / "eval.json").write_text('{"before": {"reward": 0.1, "gold": 0.2}}', encoding="utf-8")
    page = text_of(policy_run)
    assert "eval.json holds the figures before training only." in page
    assert "No verdict yet" in page


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "eval.json"]
)
def test_any_file_may_be_missing(policy_run: Path, reward_run: Path, name: str) -> None:
    for run in (policy_run, reward_run):
        (run / name).unlink(missing_ok=True)
        page = text_of(run)
        assert (f"{name} is not there" in page) == (run == policy_run or name != "samples.jsonl")


def test_the_reward_models_table_comes_from_its_run(policy_run: Path) -> None:
    page = text_of(policy_run)
    assert "The reward model it learnt from" in page
    assert "multi-turn" in page
    (policy_run.parent / "reward" / "eval.json").unlink()
    page = text_of(policy_run)
    assert "The reward model it learnt from" not in page
    assert "evaluation was not found beside" in page


def test_a_reward_path_relative_to_a_folder_above(policy_run: Path) -> None:
    (policy_run / "config.yaml").write_text("reward: reward/final\n", encoding="utf-8")
    assert "The reward model it learnt from" in text_of(policy_run)


def test_nothing_of_gold_where_there_is_none(
    tmp_path: Path, make_policy: Callable[..., Path], evaluate: Callable[..., dict[str, Any]]
) -> None:
    page = text_of(make_policy(tmp_path / "run", evaluation=evaluate(gold=False)))
    assert "no gold score" in page
    assert 'data-by="gold"' not in page
    assert 'data-key="reward"' in page


def test_the_reward_page(reward_run: Path) -> None:
    page = text_of(reward_run)
    for sentence in (
        "It learnt to judge",
        "Sections",
        "Subsets",
        "7,118 of 9,125 rows kept",
        "strength is 0",
    ):
        assert sentence in page
    assert 'id="answers"' not in page


def test_another_place_for_the_page(policy_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "elsewhere.html"
    assert write_report(policy_run, page) == page
    assert page.is_file()
    assert not (policy_run / "report.html").exists()


def test_the_command(policy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlhf.commands.report import command

    command([policy_run])
    assert capsys.readouterr().out == f"Wrote {policy_run / 'report.html'}\n"
    with pytest.raises(OutputError, match="page.html") as caught:
        command([policy_run], tmp_path / "no" / "page.html")
    assert caught.value.exit_code == 2


def test_no_torch_for_a_report() -> None:
    script = "import sys, rlhf.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
