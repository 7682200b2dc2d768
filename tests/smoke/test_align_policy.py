"""`rlhf align-policy` through the real command, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from rlhf import cli

Rlhf = Callable[..., Result]

EVERY_UPDATE = {
    "step", "reward/mean", "reward/std", "reward/missing", "gold/mean", "kl/mean", "kl/sum",
    "kl/abs_mean", "kl/k2_mean", "kl/k3_mean", "kl/abs_sum", "kl/k2_sum", "kl/k3_sum", "kl/penalty",
    "kl/charged", "kl/coefficient", "length/mean", "length/finished_share", "length/reward_correlation",
    "loss/policy", "policy/entropy", "advantage/std", "optimizer/lr", "optimizer/grad_norm",
    "engine/tokens_per_second", "time/step", "time/rollout", "reward/groups_with_spread", "time/sync",
    "time/score", "time/update", "memory/peak_gib", "reward/counted_share",
}  # fmt: skip
FROM_THE_ENGINE = {"engine/logprob_difference", "engine/logprob_difference_max"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, policy_config: Path) -> tuple[Path, str]:
    """A run of three updates, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "policy"
    words = ["align-policy", str(policy_config), "--output", str(folder)]
    result = CliRunner().invoke(cli.app, words, prog_name="rlhf")
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_run_folder(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert sorted(file.name for file in folder.iterdir() if file.name != ".lock") == [
        "checkpoints",
        "config.yaml",
        "drops.json",
        "environment.json",
        "eval.json",
        "final",
        "inputs.json",
        "metrics.jsonl",
        "report.html",
        "samples.jsonl",
    ]
    assert yaml.safe_load((folder / "config.yaml").read_text())["output"] == str(folder)
    assert "60 rows read, 60 kept, 0 dropped" in printed
    assert "Peak memory" in printed
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir()) == ["model", "step-2", "step-3"]
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_metrics(run: tuple[Path, str]) -> None:
    rows = lines(run[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(set(row) == EVERY_UPDATE for row in rows)
    first, second, _ = rows
    # A fresh adapter changes nothing: at the first update the policy is the reference, exactly.
    distances = {name for name in EVERY_UPDATE if name.startswith("kl/")} - {"kl/coefficient"}
    assert {first[name] for name in distances} == {0.0} and len(distances) == 10
    assert second["kl/abs_mean"] > 0.001
    for row in rows:
        assert row["kl/coefficient"] == 0.05 and row["kl/charged"] == pytest.approx(row["kl/sum"], abs=1e-6)
        assert row["kl/penalty"] == pytest.approx(0.05 * row["kl/sum"], abs=1e-6)
        assert row["time/step"] == pytest.approx(
            sum(row[f"time/{part}"] for part in ("rollout", "sync", "score", "update"))
        )
        assert row["optimizer/lr"] == 0.01


def test_samples(run: tuple[Path, str]) -> None:
    rows = lines(run[0] / "samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3) for _ in range(2 * 3)]
    for row in rows:
        keys = {"step", "prompt", "answer", "reward", "gold", "kl", "length", "finished"}
        assert set(row) - {"tokens", "token_kl", "token_reward"} == keys
        if "tokens" in row:
            assert len(row["tokens"]) == len(row["token_kl"]) == row["length"]
            assert sum(row["token_kl"]) == pytest.approx(row["kl"], abs=1e-3)
            # RLOO: 0.05 x the log-ratio is subtracted at each token, the reward added at the last one.
            penalties = [-0.05 * value for value in row["token_kl"]]
            assert row["token_reward"][:-1] == pytest.approx(penalties[:-1], abs=1e-3)
            assert row["token_reward"][-1] == pytest.approx(penalties[-1] + row["reward"], abs=1e-3)
        assert {"role", "content"} == set(row["prompt"][-1]) and row["prompt"][-1]["role"] == "user"
        assert 0 <= row["gold"] <= 1
        assert row["finished"] or row["length"] == 6
    assert sum("tokens" in row for row in rows) == 3 * 4  # four answers of each update
    for step, metrics in enumerate(lines(run[0] / "metrics.jsonl"), start=1):
        ours = [row for row in rows if row["step"] == step]
        assert metrics["reward/mean"] == pytest.approx(sum(row["reward"] for row in ours) / 6, rel=1e-5)
        assert metrics["kl/sum"] == pytest.approx(sum(row["kl"] for row in ours) / 6, abs=1e-6)
        # Two prompts, three answers to each, next to each other.
        assert len({json.dumps(row["prompt"]) for row in ours[:3]}) == 1
        assert len({json.dumps(row["prompt"]) for row in ours}) == 2


def test_eval_json(run: tuple[Path, str]) -> None:
    result = json.loads((run[0] / "eval.json").read_text())
    figures = {"reward", "gold", "kl", "length"}
    assert set(result["before"]) == set(result["after"]) == set(result["difference"]) == figures
    assert result["before"]["kl"] == 0.0 and result["after"]["kl"] != 0.0
    assert (result["prompts"], result["samples"], len(result["answers"])) == (3, 2, 3)
    for name, difference in result["difference"].items():
        assert difference["mean"] == pytest.approx(result["after"][name] - result["before"][name], abs=1e-9)
        low, high = difference["ci95"]
        assert low <= difference["mean"] <= high
    for pair in result["answers"]:
        for side in ("before", "after"):
            assert set(pair[side]) == {"answer", "reward", "gold", "kl", "length", "finished"}


def test_held_out_prompts_are_not_practised_on(run: tuple[Path, str]) -> None:
    practised = {json.dumps(row["prompt"]) for row in lines(run[0] / "samples.jsonl")}
    held = {json.dumps(pair["prompt"]) for pair in json.loads((run[0] / "eval.json").read_text())["answers"]}
    assert len(held) == 3 and not practised & held


def test_the_policy_loads_with_plain_peft(run: tuple[Path, str], tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = run[0] / "final"
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = AutoTokenizer.from_pretrained(final)("Hello there", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        model = PeftModel.from_pretrained(base, final).eval()
        assert (
            model.active_adapters == ["default"] and len(model.peft_config) == 1
        )  # without the reward model's
        assert (model(ids).logits - before).abs().max() > 0.01
    card = json.loads((final / "policy.json").read_text())
    assert card["base"] == str(tiny_base)


def test_the_same_run_twice_is_the_same(
    run: tuple[Path, str], rlhf_command: Rlhf, policy_config: Path, tmp_path: Path
) -> None:
    result = rlhf_command("align-policy", policy_config, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "samples.jsonl").read_text() == (run[0] / "samples.jsonl").read_text()
    assert (tmp_path / "run" / "eval.json").read_text() == (run[0] / "eval.json").read_text()


def test_a_policy_on_a_4_bit_base(rlhf_command: Rlhf, policy_config: Path, tmp_path: Path) -> None:
    words = ["model.quantization=nf4", "model.dtype=bfloat16"]
    result = rlhf_command("align-policy", policy_config, *words, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["kl/abs_mean"] == 0.0 < rows[2]["kl/abs_mean"]


def test_a_dry_run_counts_and_leaves_nothing(rlhf_command: Rlhf, policy_config: Path, tmp_path: Path) -> None:
    result = rlhf_command("align-policy", policy_config, "--dry-run", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (
        "3 updates of 2 prompts x 3 answers = 6 answers of at most 6 tokens, by transformers" in result.stdout
    )
    assert "KL penalty: 0.05 x sum of k1 over an answer's tokens, in the reward" in result.stdout
    assert "In TRL's convention (beta x sum of k1, in the reward): beta = 0.05 = coefficient" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_spent_kl_budget_ends_the_run_in_good_order(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path
) -> None:
    words = ["steps=6", "algorithm.kl.budget=1.0e-6", "--output", tmp_path / "run"]
    result = rlhf_command("align-policy", policy_config, *words)
    assert result.exit_code == 0, result.output
    stopped = json.loads((tmp_path / "run" / "eval.json").read_text())["stopped"]
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    # Every update before the last is within the budget, and the last is the first beyond it.
    within = [row["kl/sum"] <= 1e-6 for row in rows]
    assert within == [True] * (len(rows) - 1) + [False] and len(rows) < 6
    assert (stopped["reason"], stopped["update"], stopped["budget"]) == ("kl budget", len(rows), 1e-6)
    assert stopped["kl"] == rows[-1]["kl/sum"] and stopped["kept"]["update"] == len(rows) - 2
    assert stopped["sentence"] in result.output
    assert "exceeds algorithm.kl.budget = 1e-06; the weights after update" in stopped["sentence"]
    assert (tmp_path / "run" / "final" / "policy.json").exists()
    assert not (tmp_path / "run" / "checkpoints" / f"step-{len(rows)}").exists()


def test_a_run_that_was_not_ended_early_says_so(run: tuple[Path, str]) -> None:
    assert json.loads((run[0] / "eval.json").read_text())["stopped"] is None


def test_sigterm_through_the_real_command_saves_and_leaves_no_temporary_folder(
    policy_config: Path, tmp_path: Path
) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    words = [
        sys.executable,
        "-m",
        "rlhf",
        "align-policy",
        str(policy_config),
        "steps=1000",
        "save_every=1000",
    ]
    process = subprocess.Popen(
        [*words, "--output", str(run)],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert "--resume" in printed and "Traceback" not in printed
    steps = [row["step"] for row in lines(run / "metrics.jsonl")]
    assert (run / "checkpoints" / f"step-{steps[-1]}").exists()
    assert not list(temporary.iterdir()) and not list(run.rglob("*.half-written"))
