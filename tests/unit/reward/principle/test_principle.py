"""Principle models: loss, score against a plain forward pass, training and loading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import Result

from policy.rewards.principle import PrincipleReward
from policy.rewards.protocol import Missing
from policy.rewards.weighted import WeightedRewards, WeightedTerm
from reward.load_scorer import load_scorer
from reward.losses import fulfilment
from reward.principle.items import load_data, make_items
from reward.principle.question import answer_ids, question, question_tokens
from reward.principle.recipe import load_chat, train_principle
from reward.principle.scorer import PrincipleScorer, read_principle_model
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.principle import PrincipleConfig
from rlhf.core.errors import ConfigError, DataError, ModelError, RunError
from rlhf.core.records import Message, Principle, Prompt, Rollout
from rlhf.data.demo.dataset import demo_rows
from rlhf.data.drops import DropReport
from rlhf.models.chat import Chat
from rlhf.runs.checkpoints import MANIFEST

PROMPT = (Message("user", "What is tea?"),)
ANSWERED = (*PROMPT, Message("assistant", "Tea is a drink."))
OTHER = (Message("user", "And milk?"), Message("assistant", "White."))
OTHER_LANGUAGES = ["Die Antwort ist höflich.", "回答很简短。", "الإجابة قصيرة."]
SHORT, POLITE = "The response is short.", "The response is polite and thanks the user."


def test_the_loss_is_that_of_yes_against_no() -> None:
    scores = torch.tensor([2.0, -1.0, 0.5])
    fulfilled = torch.tensor([1.0, 0.0, 0.0])
    # -log sigmoid(2), -log sigmoid(1), -log sigmoid(-0.5), over a denominator of 4.
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))) / 4
    assert fulfilment(scores, fulfilled, 4).item() == pytest.approx(expected, abs=1e-6)
    assert fulfilment(scores, fulfilled, 4) < fulfilment(-scores, fulfilled, 4), "a flipped sign costs more"


def test_its_gradient_raises_the_score_of_what_is_fulfilled() -> None:
    scores = torch.zeros(2, requires_grad=True)
    fulfilment(scores, torch.tensor([1.0, 0.0]), 2).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [-0.25, 0.25]
    with pytest.raises(ValueError, match="equal"):
        fulfilment(torch.zeros(2), torch.zeros(2, 1), 2)


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("principle")
    rows = [row for _, row in zip(range(80), demo_rows("helpsteer3-principle", "train"), strict=False)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "principle.yaml").write_text(f"""
output: unused
model: {{base: {tiny_base}, dtype: float32, max_length: 400}}
adapter: {{rank: 4, alpha: 8}}
data:
  principles: [{{path: {folder}/rows.jsonl, format: helpsteer3-principle}}]
  validation_share: 0.2
max_steps: 6
batch_size: 4
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}
tokens_per_batch: 512
validate_every: 3
save_every: 3
""")
    return folder / "principle.yaml"


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train_principle(load_config(config, PrincipleConfig, (), run))
    return run


def test_a_run_learns_and_leaves_a_plain_adapter(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert {"reward/accuracy", "optimizer/lr"} <= rows[0].keys()
    result = json.loads((trained / "eval.json").read_text())
    assert 0 <= result["ci95"][0] <= result["accuracy"] <= result["ci95"][1] <= 1
    counts = {side: result["fulfilled"][side]["count"] for side in ("yes", "no")}
    assert (
        result["majority"]
        == max(counts.values()) / result["count"]
        == max(counts.values()) / sum(counts.values())
    )
    for values in result["groups"].values():
        assert sum(part["count"] for part in values.values()) == result["count"]
        assert sum(part["count"] * part["accuracy"] for part in values.values()) == pytest.approx(
            result["count"] * result["accuracy"]
        )
    assert result["groups"].keys() == {"domain", "language"}
    adapter = read_principle_model(trained / "final")
    assert all("lora_" in name for name in adapter.weights)
    assert adapter.config.modules_to_save is None


@pytest.mark.parametrize("principles", [[SHORT], [SHORT, POLITE], OTHER_LANGUAGES])
def test_the_score_is_the_difference_of_two_logits(
    trained: Path, tiny_base: Path, principles: list[str]
) -> None:
    from peft import PeftModel

    scorer = PrincipleScorer.load(trained / "final", principles)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(trained / "final"))
    chat = Chat.load(tiny_base)
    yes, no = answer_ids(chat)
    scores = scorer.score([ANSWERED, OTHER])
    for conversation, score in zip((ANSWERED, OTHER), scores, strict=True):
        expected = {}
        for principle in principles:
            ids = torch.tensor([chat.prompt_ids(question(conversation, principle))])
            with torch.no_grad():
                logits = plain(input_ids=ids).logits[0, -1]
            expected[principle] = (logits[yes] - logits[no]).item()
        assert score.attributes == pytest.approx(expected, abs=2e-4)
        assert score.reward == pytest.approx(sum(expected.values()) / len(expected), abs=2e-4)


def test_conversations_with_principles_of_their_own_are_scored_as_alone(trained: Path) -> None:
    scorer = PrincipleScorer.load(trained / "final", [SHORT])
    asked = [(ANSWERED, [SHORT, POLITE]), (OTHER, [POLITE]), (ANSWERED, [POLITE])]
    scores = scorer.score_each(asked)
    by_one = {text: PrincipleScorer.load(trained / "final", [text]) for text in (SHORT, POLITE)}
    alone = [
        [by_one[principle].score([conversation])[0].reward for principle in principles]
        for conversation, principles in asked
    ]
    assert [len(values) for values in scores] == [2, 1, 1]
    for values, expected in zip(scores, alone, strict=True):
        assert values == pytest.approx(expected, abs=2e-4)


def test_principles_of_a_response_share_their_beginning(tiny_chat: Chat) -> None:
    records = [
        Principle(PROMPT, "Tea is a drink.", SHORT, True),
        Principle(PROMPT, "Tea.", SHORT, True),
        Principle(PROMPT, "Tea is a drink.", POLITE, False),
        Principle(PROMPT, "long " * 400, POLITE, False, "a source", place="rows.jsonl:4"),
    ]
    report = DropReport()
    items, kept = make_items(records, tiny_chat, max_length=200, report=report)
    assert [item.ratings for item in items] == [((1.0,), (0.0,)), ((1.0,),)]
    assert len(items[0].tree.trunk) > len(tiny_chat.prompt_ids(PROMPT))
    assert (kept, report.reasons.total()) == ([records[0], records[2], records[1]], 1)
    assert list(report.examples.values()) == [["rows.jsonl:4"]]


def test_rows_that_are_all_held_out_are_named_with_their_share(config: Path, tmp_path: Path) -> None:
    settings = load_config(config, PrincipleConfig, ["data.validation_share=1"], tmp_path)
    with pytest.raises(DataError) as caught:
        load_data(settings, load_chat(settings))
    assert (caught.value.fix or "").startswith("data.validation_share=0 ")


def test_the_question(tiny_chat: Chat) -> None:
    asked = question(ANSWERED, f"  {SHORT} ")
    assert asked[:-1] == ANSWERED
    assert asked[-1].role == "user" and f"Principle: {SHORT}\n" in asked[-1].content
    longest = len(tiny_chat.prompt_ids(question(ANSWERED, POLITE)))
    assert question_tokens(tiny_chat, [SHORT, POLITE]) == longest - len(tiny_chat.conversation_ids(ANSWERED))
    with pytest.raises(ConfigError):
        question(ANSWERED, " \n")


def test_a_run_that_starts_from_another_one(config: Path, trained: Path, tmp_path: Path) -> None:
    words = [f"start={trained}/final", "max_steps=1", "optimizer.learning_rate=1e-9"]
    train_principle(load_config(config, PrincipleConfig, words, tmp_path / "run"))
    before, after = (read_principle_model(run / "final").weights for run in (trained, tmp_path / "run"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    dated = load_config(
        config, PrincipleConfig, [*words, "model.chat_template_kwargs={x: 1}"], tmp_path / "no"
    )
    with pytest.raises(ModelError):
        load_chat(dated)
    with pytest.raises(ModelError) as caught:  # before a model is loaded
        load_chat(load_config(config, PrincipleConfig, [*words, "adapter.rank=2"], tmp_path / "no"))
    assert caught.value.fix == "adapter.rank=4"


def test_a_killed_run_resumes(config: Path, trained: Path, tmp_path: Path) -> None:
    settings = load_config(config, PrincipleConfig, ["max_steps=6"], tmp_path / "run")
    train_principle(settings)
    for folder in (tmp_path / "run/checkpoints").glob("step-6"):
        (folder / MANIFEST).unlink()
    train_principle(settings, resume=True)
    first, again = (read_principle_model(run / "final").weights for run in (trained, tmp_path / "run"))
    assert all(torch.allclose(first[name], again[name], atol=1e-5) for name in first)


def test_a_failed_evaluation_loses_neither_weights_nor_result(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("No score.")

    monkeypatch.setattr("reward.principle.recipe.evaluate", fail)
    with pytest.raises(RunError) as caught:
        train_principle(load_config(config, PrincipleConfig, ["max_steps=1"], tmp_path / "run"))
    assert "No score." in caught.value.found
    assert read_principle_model(tmp_path / "run" / "final").weights
    (failure,) = json.loads((tmp_path / "run" / "eval.json").read_text())["failures"]
    assert failure["step"] == "the evaluation"


def test_the_command_line(
    rlhf_command: Callable[..., Result], config: Path, trained: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    row = {"messages": [message.as_dict() for message in ANSWERED]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    files = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    for principles in ([SHORT, POLITE], OTHER_LANGUAGES):
        named = [word for principle in principles for word in ("--principle", principle)]
        done = rlhf_command("score", trained / "final", *named, *files)
        assert done.exit_code == 0, done.output
        scored = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
        assert set(scored["attributes"]) == {*principles}
    for words in (
        [trained / "final"],
        [trained / "final", "--principle", " "],
        [trained / "final", "--principle", SHORT, "--principle", SHORT],
        [tiny_reward, "--principle", SHORT],
    ):
        failed = rlhf_command("score", *words, *files)
        assert (failed.exit_code, "Traceback" in failed.output) == (2, False), failed.output
    dry = rlhf_command("train-principle", config, "--dry-run")
    assert dry.exit_code == 0 and "6 updates of 4" in dry.output


def test_other_commands_know_the_run(
    rlhf_command: Callable[..., Result], config: Path, trained: Path, tmp_path: Path
) -> None:
    for command in ("plan", "doctor", "inspect"):
        refused = rlhf_command(command, config)
        assert (refused.exit_code, "Traceback" in refused.output) == (2, False), refused.output
        assert f"rlhf train-principle {config} --dry-run" in " ".join(refused.output.split())
    merged = rlhf_command("export", trained / "final", "--output", tmp_path / "merged")
    assert (merged.exit_code, "--lora-modules" in merged.output) == (2, True), merged.output
    pushed = rlhf_command("push", trained, "me/principles", "--dry-run", "--base", "me/base")
    assert pushed.exit_code == 0, pushed.output
    assert {"README.md", "principle.json", "adapter_model.safetensors"} <= set(pushed.output.split())
    result = json.loads((trained / "eval.json").read_text())
    for runs in ([trained], [trained, trained]):
        page = tmp_path / f"{len(runs)}.html"
        done = rlhf_command("report", *runs, "--output", page)
        assert done.exit_code == 0, done.output
        assert f"of {result['count']} held-out judgements" in page.read_text()
    alone = (tmp_path / "1.html").read_text()
    assert "Principle model" in alone and "not fulfilled" in alone


def test_several_principles_are_several_rewards(trained: Path) -> None:
    scorer = load_scorer(trained / "final", principles=[SHORT, POLITE])
    assert isinstance(scorer, PrincipleScorer)
    calls: list[int] = []
    whole = scorer.score
    scorer.score = lambda conversations: (calls.append(len(conversations)), whole(conversations))[1]  # type: ignore[method-assign]
    prompts = [Prompt(PROMPT)] * 2
    rollouts = [Rollout((1,), (5,), (), True, text) for text in ("Tea is a drink.", "Tea.")]
    reward = PrincipleReward(scorer)
    columns = reward.columns("principle")
    assert list(columns) == ["principle.1", "principle.2"]
    parts = [WeightedTerm(name, 2.0, source) for name, source in columns.items()]
    result = WeightedRewards(parts, "error").of(prompts, rollouts)
    assert calls == [2], "all principles in one call"
    scores = whole([(*PROMPT, Message("assistant", rollout.text)) for rollout in rollouts])
    assert result.columns["principle.1"] == pytest.approx([s.attributes[SHORT] for s in scores], abs=1e-4)
    assert result.rewards == pytest.approx([2 * sum(s.attributes.values()) for s in scores], abs=1e-3)
    assert list(PrincipleReward(PrincipleScorer.load(trained / "final", [SHORT])).columns("kind")) == ["kind"]
    too_long = [Rollout((1,), (5,), (), True, "word " * 600)]
    assert isinstance(PrincipleReward(scorer).of(prompts[:1], too_long)[0], Missing)


@pytest.mark.parametrize(
    "source",
    [
        {"principle": "runs/p"},
        {"principle": "runs/p", "principles": ["x", " "]},
        {"principle": "runs/p", "principles": ["x", "x"]},
        {"adapter": "runs/p", "principles": ["x"]},
    ],
)
def test_principles_that_cannot_be_used(source: dict[str, Any]) -> None:
    config = {"output": "o", "reward": [source], "data": {"prompts": [{"path": "demo"}]}}
    with pytest.raises(ValueError, match="principle"):
        PolicyConfig.model_validate(config)


def test_a_policy_learns_from_principles(
    rlhf_command: Callable[..., Result], policy_config: Path, trained: Path, tmp_path: Path
) -> None:
    source = {"principle": str(trained / "final"), "principles": [SHORT, POLITE], "weight": 0.5}
    words = [f"reward=[{json.dumps(source)}]", "reward_shaping.normalise=each", "steps=2"]
    done = rlhf_command("align-policy", policy_config, *words, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    expected = 0.5 * (row["reward/principle.1"] + row["reward/principle.2"])
    assert row["reward/mean"] == pytest.approx(expected, abs=1e-4)
