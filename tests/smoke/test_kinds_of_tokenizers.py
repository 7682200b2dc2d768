"""Train one update, save and load, for each kind of tokenizer: the ids are those of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers_of_kinds import KINDS, make_tokenizer, write_base
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from policy.recipe import align_policy
from reward.load_scorer import load_scorer
from reward.training.recipe import train_reward
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message
from rlhf.models.chat import Chat

QUESTION = "Is <unk> bread?"
ANSWERS = ("No, a token: <unk>.", "It may be <|im_end|> or </s>.")
TALKS = [(Message("user", QUESTION), Message("assistant", answer)) for answer in ANSWERS]


@pytest.mark.parametrize("kind", KINDS)
def test_final_gives_the_ids_and_scores_of_the_training(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", make_tokenizer(**KINDS[kind]))
    rows = [{"prompt": f"{QUESTION} {n}", "chosen": ANSWERS[0], "rejected": ANSWERS[1]} for n in range(8)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {name: name for name in ("prompt", "chosen", "rejected")}
    config = RewardConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"base": str(base), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 2, "alpha": 4},
            "attributes": ["reward"],
            "data": {
                "preferences": [{"path": str(data), "format": "columns", "columns": columns}],
                "validation_share": 0.25,
            },
            "stages": [{"name": "pairs", "preference_weight": 1, "max_steps": 1, "batch_size": 4}],
        }
    )
    train_reward(config)
    final = tmp_path / "run" / "final"
    trained = Chat.of(config.model)
    scorer = load_scorer(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    card = json.loads((final / "reward.json").read_text())
    plain: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, pad_token_id=card["pad_id"]
    )
    plain = PeftModel.from_pretrained(plain, str(final)).eval()
    for talk, score in zip(TALKS, scorer.score(TALKS), strict=True):
        ids = trained.conversation_ids(talk)
        assert scorer.chat.conversation_ids(talk) == ids
        with torch.no_grad():
            assert score.reward == pytest.approx(plain(torch.tensor([ids])).logits.item(), abs=1e-5)
    # Text that spells a control token is text in training; transformers' own tokenizers cannot do that.
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    talk = (Message("user", "Hi."), Message("assistant", "Yes."))
    assert tokenizer.apply_chat_template(messages, return_dict=False) == trained.conversation_ids(talk)


@pytest.mark.parametrize("kind", ["llama3, no pad", "qwen, <unk> is a word"])
def test_a_policys_final_gives_the_ids_of_the_training(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", make_tokenizer(**KINDS[kind]))
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{QUESTION} {n}"}) + "\n" for n in range(6)))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def length(completion_ids, **kwargs):\n    return [float(len(i)) for i in completion_ids]\n"
    )
    config = PolicyConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"base": str(base), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 2, "alpha": 4},
            "reward": {"function": f"{rewards}:length"},
            "data": {"prompts": [{"path": str(data)}], "max_prompt_tokens": 120},
            "rollouts": {
                "engine": "transformers",
                "prompts_per_step": 2,
                "samples_per_prompt": 2,
                "max_new_tokens": 6,
            },
            "algorithm": {"unfinished": "keep"},
            "steps": 1,
            "evaluation": {"prompts": 2, "samples": 1},
        }
    )
    align_policy(config)
    again = Chat.load(base, tokenizer=tmp_path / "run" / "final")
    trained = Chat.of(config.model)
    assert again.prompt_ids(TALKS[0][:1]) == trained.prompt_ids(TALKS[0][:1])
    assert (again.stop_ids, again.pad_id) == (trained.stop_ids, trained.pad_id)
