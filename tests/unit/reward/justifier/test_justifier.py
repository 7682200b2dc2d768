"""The Pairwise Justifier: texts and verdicts, its data, a small run, and its use as a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import SFTTrainer
from typer.testing import Result

from reward.judge.forms import pair_request, read_pair
from reward.judge.groups import scores_of
from reward.justifier.data import FOR_TEST, IGNORED, example, load_data
from reward.justifier.evaluation import judge_pairs
from reward.justifier.judge import load_justifier, read_justifier
from reward.justifier.recipe import train_justifier
from reward.justifier.trainer import JustifierTrainer
from reward.training.data import load_data as load_reward_data
from rlhf.config.judge import JudgeConfig
from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, ModelError, RunError
from rlhf.core.records import Comparison, Justification, Message
from rlhf.data.demo.dataset import demo_rows
from rlhf.data.load import load_justifications
from rlhf.data.rules import NO_JUSTIFICATION
from rlhf.data.verdicts import read_verdict, statement_of
from rlhf.models.chat import Chat

PROMPT = (Message("user", "What is tea?"),)


@pytest.mark.parametrize("strength", [-3, -2, -1, 1, 2, 3])
def test_statements_and_verdicts_are_inverse(strength: int) -> None:
    assert read_verdict(f"It is terse. {statement_of(strength)}") == strength
    assert (strength > 0) == ("@Response 2 is" in statement_of(strength))
    verdict = read_pair("justifier", statement_of(strength))
    assert verdict is not None
    first, second = scores_of(verdict)
    assert second - first == pytest.approx(
        {1: 0.2, 2: 0.6, 3: 1.0}[abs(strength)] * (1 if strength > 0 else -1)
    )


@pytest.mark.parametrize(
    ("text", "strength"),
    [
        ("@Response 1 is better than @Response 2, as noted. @Response 2 is much better than @Response 1.", 3),
        ("@Response 1 is slightly better than @Response 2 because it is short.", -1),
        ("@Response 1 is better than @Response 1.", None),
        ("Response 1 is better than Response 2.", None),
        ("@Response 1 is fine.", None),
        ("@Response 3 is better than @Response 1.", None),
        ("", None),
    ],
)
def test_verdicts_are_exact(text: str, strength: int | None) -> None:
    assert read_verdict(text) == strength
    assert (read_pair("justifier", text) is None) == (strength is None)


def test_the_request_is_that_of_the_paper() -> None:
    assert pair_request("justifier", PROMPT, "A", "B", []) == (
        "What is tea? @Response 1:\nA\n@Response 2:\nB\nBetween @Response 1 and @Response 2, which is better?"
    )


def test_the_loss_is_on_the_justification_and_its_end(tiny_chat: Chat) -> None:
    record = Justification(PROMPT, "A", "B", "It is terse.", statement_of(1), 1)
    made = example(record, tiny_chat)
    target = [label for label in made.labels if label != IGNORED]
    assert tiny_chat.decode(target) == "It is terse. @Response 2 is slightly better than @Response 1."
    assert target[-1] in tiny_chat.stop_ids
    assert made.input_ids[-len(target) :] == target
    request = pair_request("justifier", PROMPT, "A", "B", [])
    assert made.input_ids[: -len(target)] == tiny_chat.prompt_ids((Message("user", request),))


def test_justifications_of_both_data_sets(tmp_path: Path) -> None:
    row = {
        "split": "train",
        "prompt": "q",
        "response_1": "a",
        "response_2": "b",
        "preference_strength": 2,
        "preference_elaboration": "B is longer.",
        "preference_statement": "@Response 2 is better than @Response 1.",
    }
    rows = [row, {**row, "prompt": "r", "preference_statement": "@Response 1 is better than @Response 2."}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(path=str(tmp_path / "two.jsonl"), format="helpsteer2-preference")
    (made,), drops = load_justifications([source], seed=0, max_spread=2)
    assert made.text == "B is longer. @Response 2 is better than @Response 1."
    assert drops.reasons == {NO_JUSTIFICATION: 1}
    three = {
        "domain": "general",
        "language": "english",
        "context": [{"role": "user", "content": "q"}],
        "response1": "a",
        "response2": "b",
        "overall_preference": -1,
        "individual_preference": [
            {"score": 1, "reasoning": "b wins"},
            {"score": -2, "reasoning": "a is right."},
        ],
    }
    (tmp_path / "three.jsonl").write_text(json.dumps(three) + "\n")
    source = DataSource(path=str(tmp_path / "three.jsonl"), format="helpsteer3")
    (made,), _ = load_justifications([source], seed=0, max_spread=2)
    assert made.text == "a is right. @Response 1 is better than @Response 2."
    assert made.strength == -1


def test_test_prompts_are_those_of_a_reward_model_and_are_left_out(
    tiny_base: Path, tiny_chat: Chat, tmp_path: Path
) -> None:
    rows = [row for _, row in zip(range(60), demo_rows("helpsteer2-preference", "train"), strict=False)]
    source = {"path": str(tmp_path / "rows.jsonl"), "format": "helpsteer2-preference"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"base": str(tiny_base), "max_length": 512}
    shares = {"test_share": 0.3, "validation_share": 0.2}
    justifier = JustifierConfig.model_validate(
        {"output": str(tmp_path), "model": model, "data": {"justifications": [source], **shares}}
    )
    reward = RewardConfig.model_validate(
        {
            "output": str(tmp_path),
            "model": model,
            "data": {"preferences": [source], **shares},
            "stages": [{"name": "s", "regression_weight": 0, "preference_weight": 1, "batch_size": 4}],
        }
    )
    data = load_data(justifier, tiny_chat)
    tested = {pair.prompt for pair in load_reward_data(reward, tiny_chat).held_out}
    assert tested and data.drops.reasons[FOR_TEST] >= len(tested)
    assert all(place.startswith(f"{source['path']}:") for place in data.drops.examples[FOR_TEST])
    nothing = justifier.model_copy(
        update={"data": justifier.data.model_copy(update={"validation_share": 1.0})}
    )
    with pytest.raises(DataError) as caught:
        load_data(nothing, tiny_chat)
    assert (caught.value.fix or "").startswith("data.validation_share=0 ")
    assert data.held_out and not tested & {record.prompt for record in data.held_out}
    assert len(data.training) + len(data.held_out) + sum(data.drops.reasons.values()) == len(rows)


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("justifier")
    rows = [row for _, row in zip(range(24), demo_rows("helpsteer2-preference", "train"), strict=False)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "justifier.yaml").write_text(f"""
output: {folder}/run
model: {{base: {tiny_base}, dtype: float32, max_length: 480}}
adapter: {{rank: 4, alpha: 8}}
data:
  justifications: [{{path: {folder}/rows.jsonl, format: helpsteer2-preference}}]
  validation_share: 0.2
epochs: 2
max_steps: 4
batch_size: 4
micro_batch_size: 2
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}
max_new_tokens: 4
evaluation_pairs: 2
save_every: 2
""")
    train_justifier(load_config(folder / "justifier.yaml", JustifierConfig))
    return folder / "run"


def test_a_run_learns_and_is_a_judge(
    trained: Path, tiny_reward: Path, rlhf_command: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    # An untrained model of two layers writes no verdict: every text is counted, and no score is made up.
    result = json.loads((trained / "eval.json").read_text())
    assert result["judge"]["unparsed"] == result["judge"]["requests"] == 4
    assert 4 <= result["judge"]["completion_tokens"] <= 4 * 4  # max_new_tokens
    assert "overall" not in result
    assert all("lora_" in name for name in read_justifier(trained / "final").weights)
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    words = ["--form", "justifier", "--data", tmp_path / "pairs.jsonl"]
    done = rlhf_command("evaluate-reward", trained / "final", *words)
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    with pytest.raises(ModelError):
        load_justifier(tiny_reward)


def test_micro_batches_change_no_loss(trained: Path, tmp_path: Path) -> None:
    words = ["micro_batch_size=4", "max_steps=2", "data.validation_share=0.2", "evaluation_pairs=1"]
    train_justifier(load_config(trained.parent / "justifier.yaml", JustifierConfig, words, tmp_path / "run"))
    ours, theirs = (
        [json.loads(line)["loss/total"] for line in (run / "metrics.jsonl").read_text().splitlines()][:2]
        for run in (tmp_path / "run", trained)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_callbacks_receive_the_loss_of_transformers() -> None:
    trainer: Any = JustifierTrainer.__new__(JustifierTrainer)
    trainer.record, passed = lambda *_: None, []
    trainer.step_offset, trainer.state = 0, SimpleNamespace(global_step=1)
    trainer.args = trainer.control = None
    trainer.callback_handler = SimpleNamespace(on_log=lambda *values: passed.append(values[-1]))
    trainer.log({"loss": 0.4, "learning_rate": 1e-4, "grad_norm": 2.0})
    trainer.log({"train_runtime": 1.0})
    assert [figures["loss/total"] for figures in passed] == [0.4]


def test_other_commands_know_the_run(
    trained: Path, rlhf_command: Callable[..., Result], tmp_path: Path
) -> None:
    config = trained.parent / "justifier.yaml"
    for command in ("plan", "doctor", "inspect"):
        refused = rlhf_command(command, config)
        assert (refused.exit_code, "Traceback" in refused.output) == (2, False), refused.output
        assert f"rlhf train-justifier {config} --dry-run" in " ".join(refused.output.split())
    merged = rlhf_command("export", trained / "final", "--output", tmp_path / "merged")
    assert (merged.exit_code, "--lora-modules" in merged.output) == (2, True), merged.output
    pushed = rlhf_command("push", trained, "me/judge", "--dry-run", "--base", "me/base")
    assert pushed.exit_code == 0, pushed.output
    assert {"README.md", "justifier.json", "adapter_model.safetensors"} <= set(pushed.output.split())
    for runs in ([trained], [trained, trained]):
        page = tmp_path / f"{len(runs)}.html"
        done = rlhf_command("report", *runs, "--output", page)
        assert done.exit_code == 0, done.output
        assert "No held-out pair has a verdict that could be read." in page.read_text()
    assert "Pairwise Justifier" in (tmp_path / "1.html").read_text()


def test_a_resumed_run_may_be_longer_and_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    for words, resume in ((["max_steps=2"], False), (["max_steps=4", "micro_batch_size=4"], True)):
        config = trained.parent / "justifier.yaml"
        words = [*words, "evaluation_pairs=1"]
        train_justifier(load_config(config, JustifierConfig, words, tmp_path / "run"), resume=resume)
    first, again = (read_justifier(run / "final").weights for run in (trained, tmp_path / "run"))
    assert all(torch.allclose(first[name], again[name], atol=1e-5) for name in first)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_failed_evaluation_loses_neither_weights_nor_result(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("No text.")

    monkeypatch.setattr("reward.justifier.recipe.judge_held_out", fail)
    words = ["max_steps=1"]
    with pytest.raises(RunError) as caught:
        train_justifier(
            load_config(trained.parent / "justifier.yaml", JustifierConfig, words, tmp_path / "run")
        )
    assert "No text." in caught.value.found
    assert read_justifier(tmp_path / "run" / "final").weights
    (failure,) = json.loads((tmp_path / "run" / "eval.json").read_text())["failures"]
    assert failure["step"] == "the evaluation"


def test_a_pair_beyond_the_context_is_an_error_and_not_an_unread_text(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DataError("too long", fix="a shorter pair")

    monkeypatch.setattr("reward.justifier.judge.require_length", refuse)
    with pytest.raises(DataError) as caught:
        judge_pairs(trained / "final", [Comparison(PROMPT, "A", "B", subset="s")])
    assert caught.value.fix == "a shorter pair"


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_packed_loss_is_trls(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    ours = JustifierTrainer.compute_loss
    losses = list[tuple[float, float]]()

    def both(self: Any, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        loss = ours(self, model, inputs, **options)
        padded = {name: value for name, value in inputs.items() if name != "packed"}
        theirs = SFTTrainer.compute_loss(self, model, padded, **options)
        losses.append((loss.item(), theirs.item()))
        return loss

    monkeypatch.setattr(JustifierTrainer, "compute_loss", both)
    words = ["max_steps=1", "evaluation_pairs=1", f"model.packing={packing}"]
    train_justifier(load_config(trained.parent / "justifier.yaml", JustifierConfig, words, tmp_path / "run"))
    assert len(losses) == 2  # two micro-batches
    for packed, theirs in losses:
        assert packed == pytest.approx(theirs, rel=1e-4)


def test_settings_of_a_justifier_as_judge() -> None:
    JudgeConfig(url="http://h", model="m", form="justifier", pairing="all")
    for settings in ({"pairing": "single"}, {"pairing": "all", "criteria": ["x"]}):
        with pytest.raises(ValueError, match="justifier"):
            JudgeConfig(url="http://h", model="m", form="justifier", **settings)  # type: ignore[arg-type]
