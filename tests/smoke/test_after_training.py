"""Whatever fails after training: weights, evaluation, card and report are written, and the exit code says
that something failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from policy.save import save_final
from reward.scorer import Scorer
from rlhf.commands import compare
from rlhf.core.errors import EngineError, ModelError, RunError

Rlhf = Callable[..., Result]


def test_scores_that_depend_on_the_batch_lose_no_reward_run(
    rlhf_command: Rlhf, reward_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer whose scores move by 1 in company, in float32 too: the mask is wrong."""
    score = Scorer.score

    def moving(self: Scorer, conversations: list[object]) -> list[object]:
        result = score(self, conversations)  # type: ignore[arg-type]
        move = float(len(conversations) > 1)
        return [type(item)(item.reward + move, item.attributes) for item in result]

    monkeypatch.setattr(Scorer, "score", moving)
    run = tmp_path / "run"
    words = ["stages.0.max_steps=1", "stages.1.max_steps=1", "head_start=0", "benchmark=demo"]
    result = rlhf_command("train-reward", reward_config, *words, "--output", run)
    assert result.exit_code == 1, result.output
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["self_check"]["verdict"] == evaluation["held_out"]["self_check"]["verdict"] == "batch"
    assert 0 <= evaluation["overall"] <= 1
    assert len(evaluation["failures"]) == 2
    assert (run / "report.html").exists() and (run / "final" / "adapter_model.safetensors").exists()
    assert "| " in (run / "final" / "README.md").read_text()


def test_a_broken_card_loses_no_evaluation_and_a_resumed_run_only_repeats_what_follows(
    rlhf_command: Rlhf, reward_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the card's template is not there")

    run = tmp_path / "run"
    words = [
        "train-reward",
        reward_config,
        "stages.0.max_steps=1",
        "stages.1.max_steps=1",
        "head_start=0",
        "--output",
        run,
    ]
    with monkeypatch.context() as patched:
        patched.setattr("reward.training.recipe.write_card", broken)
        result = rlhf_command(*words)
    assert result.exit_code == 1
    (failure,) = json.loads((run / "eval.json").read_text())["failures"]
    assert failure["step"] == "the model card" and "template" in failure["reason"]
    assert "a step failed: the model card" in (run / "report.html").read_text()
    metrics = (run / "metrics.jsonl").read_text()
    assert rlhf_command(*words, "--resume").exit_code == 0
    assert (run / "metrics.jsonl").read_text() == metrics
    assert "failures" not in json.loads((run / "eval.json").read_text())


@pytest.mark.parametrize("error", [EngineError("the engine is gone"), RuntimeError("out of memory")])
def test_a_policy_outlives_its_evaluation(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The engine fails at the second evaluation, after training."""
    from policy import recipe

    answers, calls = recipe.held_out_answers, list[int]()

    def failing(*arguments: Any) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return answers(*arguments)

    monkeypatch.setattr(recipe, "held_out_answers", failing)
    run = tmp_path / "run"
    result = rlhf_command("align-policy", policy_config, "steps=1", "--output", run)
    assert result.exit_code == 1, result.output
    assert str(error) in result.output and "--resume" in result.output
    assert json.loads((run / "eval.json").read_text())["failures"][0]["step"] == "the held-out prompts"
    assert (run / "final" / "policy.json").exists() and (run / "report.html").exists()


def test_weights_that_cannot_be_written_in_their_last_form_stay_in_the_checkpoint(
    rlhf_command: Rlhf, policy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, model: Any, chat: Any, folder: Path) -> None:
        if folder.name == "final":  # what checkpoints share is written before training
            raise ModelError("generation_config cannot be saved")
        save_final(config, model, chat, folder)

    run = tmp_path / "run"
    words = ["align-policy", policy_config, "steps=1", "--output", run]
    with monkeypatch.context() as patched:
        patched.setattr("policy.recipe.save_final", broken)
        assert rlhf_command(*words).exit_code == 1
    assert (run / "checkpoints" / "step-1").exists() and "difference" in json.loads(
        (run / "eval.json").read_text()
    )
    assert rlhf_command(*words, "--resume").exit_code == 0
    assert (run / "final" / "policy.json").exists()


def test_a_broken_page_loses_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("rlhf.report.comparisons.winrate.write_page", broken)
    with pytest.raises(RunError) as caught:
        compare._write(tmp_path / "out", {"prompts": 1}, [{"prompt": "Hi"}])
    assert "no picture" in caught.value.found and caught.value.exit_code == 1
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == {"prompts": 1}
    assert (tmp_path / "out" / "compare_rows.jsonl").read_text() == '{"prompt": "Hi"}\n'
