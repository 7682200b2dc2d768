"""Both commands on other architectures than Llama, from end to end, with random weights: runs that were
killed and resumed are exact, and the results load with transformers and PEFT alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build_to_chat
from peft import PeftModel
from resuming import assert_same_run, figures, killed_after
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import Result

from reward.load_scorer import load_scorer
from rlhf.core.records import Message

Rlhf = Callable[..., Result]
TALK = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue, perhaps."}]


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """Random weights of a family, with the embedded model's tokenizer."""
    return build_to_chat(request.param, tmp_path / "base", tiny_base)


@pytest.mark.parametrize("base", ["qwen3", slow("qwen3_moe"), slow("gemma3_text")], indirect=True)
def test_a_reward_model_and_a_policy_of_another_family(
    base: Path, rlhf_command: Rlhf, reward_config: Path, policy_config: Path, tmp_path: Path
) -> None:
    model, reward = f"model.base={base}", tmp_path / "reward"
    resumed_exactly(rlhf_command, ["train-reward", reward_config, model], reward, 6)
    policy = tmp_path / "policy"
    words = ["align-policy", policy_config, model, f"reward={reward / 'final'}"]
    resumed_exactly(rlhf_command, words, policy, 3)
    rewards = [row["reward/mean"] for row in figures(policy)]
    assert len(set(rewards)) == len(rewards) == 3

    tokenizer = AutoTokenizer.from_pretrained(reward / "final")
    ids = tokenizer.apply_chat_template(TALK, return_tensors="pt", return_dict=True)["input_ids"]
    talk = tuple(Message(**message) for message in TALK)
    score = load_scorer(reward / "final").score([talk])[0]
    card = json.loads((reward / "final" / "reward.json").read_text())
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(card["attributes"]), dtype=torch.float32, pad_token_id=card["pad_id"]
    )
    classifier = PeftModel.from_pretrained(classifier, str(reward / "final")).eval()
    causal: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    causal = PeftModel.from_pretrained(causal, str(policy / "final")).eval()
    result = rlhf_command("export", policy / "final", "--output", tmp_path / "merged", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = classifier(ids).logits[0]
        assert (merged(ids).logits - causal(ids).logits).abs().max() < 1e-3
        with causal.disable_adapter():
            assert (merged(ids).logits - causal(ids).logits).abs().max() > 1e-2
    assert list(score.attributes.values()) == pytest.approx(logits.tolist(), abs=1e-4)


def resumed_exactly(rlhf: Rlhf, words: list[Any], run: Path, killed: int) -> None:
    """Run the command unbroken, and in `run` killed after an update and resumed."""
    unbroken = run.with_name(f"{run.name}-unbroken")
    result = rlhf(*words, "--output", unbroken)
    assert result.exit_code == 0, result.output
    with killed_after(killed):
        rlhf(*words, "--output", run)
    result = rlhf(*words, "--output", run, "--resume")
    assert result.exit_code == 0, result.output
    assert_same_run(run, unbroken)
