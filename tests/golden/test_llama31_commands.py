"""Both commands on a Llama of two layers with Llama-3.1's real vocabulary: 128,256 tokens, three stop ids, a
dated template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rlhf import cli

REWARD = """
output: unused
model: {{base: {base}, max_length: 256, dtype: float32}}
adapter: {{rank: 4, alpha: 8}}
data:
  ratings: [{{path: demo, format: helpsteer2, limit: 60}}]
  preferences: [{{path: demo, format: helpsteer2-preference, limit: 30}}]
  validation_share: 0.2
stages:
  - {{name: hybrid, regression_weight: 1.0, preference_weight: 1.0, max_steps: 2, batch_size: 4, optimizer:
  {{warmup_steps: 0}}}}
head_start: 8
tokens_per_batch: 512
"""
POLICY = """
output: unused
model: {{base: {base}, max_length: 256, dtype: float32}}
adapter: {{rank: 4, alpha: 8}}
reward: {reward}
data: {{prompts: [{{path: demo, limit: 40}}], max_prompt_tokens: 200}}
rollouts: {{engine: transformers, prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 6}}
algorithm: {{unfinished: keep}}
steps: 2
tokens_per_batch: 512
evaluation: {{prompts: 2, samples: 2}}
"""


@pytest.fixture(scope="module")
def base(llama31_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, in the tokenizer's folder with the ids of Llama-3.1's own config."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama31") / "base"
    shutil.copytree(llama31_tokenizer, folder)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=128_000,
        eos_token_id=[128_001, 128_008, 128_009],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_pretrained(llama31_tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    def run(command: str, text: str, **values: Any) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(command)
        config = folder / "config.yaml"
        config.write_text(text.format(base=base, **values))
        words = [command, str(config), "--output", str(folder / "run")]
        result: Result = CliRunner().invoke(cli.app, words, prog_name="rlhf")
        assert result.exit_code == 0, result.output
        return folder / "run", result.output

    return run


@pytest.fixture(scope="module")
def reward(run: Callable[..., tuple[Path, str]]) -> tuple[Path, str]:
    return run("train-reward", REWARD)


def figures(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_train_reward(reward: tuple[Path, str]) -> None:
    folder, _ = reward
    assert len(figures(folder, "loss/total")) == 2
    card = json.loads((folder / "final" / "reward.json").read_text())
    assert card["template_date"] == "26 Jul 2024"
    kept = json.loads((Path(__file__).parent / "llama31_ids.json").read_text(encoding="utf-8"))
    assert card["template_hash"] == kept["template_hash"]
    saved = json.loads((folder / "final" / "tokenizer_config.json").read_text())
    assert "pad_token" not in saved  # the tokenizer is saved as it came
    assert saved["eos_token"] == "<|eot_id|>"


def test_align_policy(reward: tuple[Path, str], run: Callable[..., tuple[Path, str]]) -> None:
    folder, _ = run("align-policy", POLICY, reward=reward[0] / "final")
    assert figures(folder, "step") == [1, 2]
    # The first update starts at the base, whatever the vocabulary.
    assert figures(folder, "kl/abs_mean")[0] == 0.0
    assert (folder / "final" / "adapter_model.safetensors").exists()
    evaluation = json.loads((folder / "eval.json").read_text())
    assert evaluation["before"]["kl"] == 0.0


CONVERSATIONS = [
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4, I think."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "Green, as in a leaf."},
    ],
]


def test_the_reward_is_read_where_metas_ids_end(
    reward: tuple[Path, str], base: Path, ids_by_hand: Callable[..., list[int]], tmp_path: Path
) -> None:
    """By transformers and PEFT alone, on ids of Meta's own encoder: one begin of text, the score at the last
    end of turn."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    final, lines = (
        reward[0] / "final",
        [json.dumps({"messages": conversation}) for conversation in CONVERSATIONS],
    )
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    words = [
        "score",
        str(final),
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    result = CliRunner().invoke(cli.app, words, prog_name="rlhf")
    assert result.exit_code == 0, result.output
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5, dtype=torch.float32)
    model = PeftModel.from_pretrained(classifier, final).eval()

    def read(ids: list[int]) -> list[float]:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0].tolist()  # type: ignore[no-any-return]

    for messages, ours in zip(CONVERSATIONS, scored, strict=True):
        ids = ids_by_hand(messages)
        assert (ids.count(128_000), ids[-1]) == (1, 128_009)
        assert list(ours["attributes"].values()) == pytest.approx(read(ids), abs=1e-4)
        assert ours["reward"] == next(iter(ours["attributes"].values()))
        # A score read one token before, or with a second begin of text, is another.
        for wrong in (ids[:-1], [128_000, *ids]):
            assert read(wrong) != pytest.approx(read(ids), abs=1e-4)


def test_each_of_the_three_stop_ids_ends_an_answer(base: Path, llama31_chat: Any) -> None:
    """A base that draws one of the three whatever it is asked: every answer is one token, and finished."""
    import torch
    from transformers import LlamaForCausalLM

    from policy.rollouts.protocol import Sampling
    from policy.rollouts.transformers_engine import TransformersEngine
    from rlhf.core.records import Message

    model = LlamaForCausalLM.from_pretrained(base)
    stops = torch.tensor([128_001, 128_008, 128_009])
    with torch.no_grad():
        for layer in model.model.layers:  # nothing is added to what stands in the embedding
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()[stops] = 1.0
    engine = TransformersEngine(Sampling(5, 1.0, llama31_chat.stop_ids), llama31_chat)
    engine.sync(model)
    prompts = [
        llama31_chat.prompt_ids([Message("user", text)]) for text in ("2 + 2?", "Tell me more, please.")
    ]
    groups = engine.generate(prompts, samples=12, seed=0)
    answers = [rollout for group in groups for rollout in group]
    assert all(rollout.finished and len(rollout.completion_ids) == 1 for rollout in answers)
    assert {rollout.completion_ids[0] for rollout in answers} == set(stops.tolist())
    assert all(rollout.text == "" for rollout in answers)
