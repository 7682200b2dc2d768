"""DPO: pairs as ids, the loss against TRL's own, packing, resume, failures, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from typer.testing import Result

from policy.dpo.card import card_text
from policy.dpo.data import EXCLUDED, NOT_A_PREFIX, TOO_LONG, TokenizedPair, answer_ids, load_data, make_pairs
from policy.dpo.recipe import build_trainer, evaluation, train_dpo
from policy.dpo.trainer import PackedDPOTrainer
from policy.shared_base import SharedBase
from rlhf.adapters.storage import read_policy
from rlhf.config.dpo import DPOConfig
from rlhf.config.load import load_config
from rlhf.core.errors import ConfigError, DataError, ModelError, RunError
from rlhf.core.records import Message, Preference, Rollout
from rlhf.data.demo.dataset import demo_rows
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SAME_IDS
from rlhf.runs.checkpoints import MANIFEST

PROMPT = (Message("user", "What is tea?"),)


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    rows = [row for _, row in zip(range(60), demo_rows("helpsteer2-preference", "train"), strict=False)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dpo.yaml").write_text(f"""
output: unused
model: {{base: {tiny_base}, dtype: float32, max_length: 400}}
adapter: {{rank: 4, alpha: 8}}
data:
  preferences: [{{path: {folder}/rows.jsonl, format: helpsteer2-preference}}]
  validation_share: 0.2
loss: scaled
max_steps: 6
batch_size: 4
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}
tokens_per_batch: 512
validate_every: 3
save_every: 3
""")
    return folder / "dpo.yaml"


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train_dpo(load_config(config, DPOConfig, (), run))
    return run


def trainer_of(config: Path, tmp_path: Path, *overrides: str) -> tuple[PackedDPOTrainer, list[TokenizedPair]]:
    """A trainer with a random adapter, and its training pairs."""
    from types import SimpleNamespace

    settings = load_config(config, DPOConfig, overrides, tmp_path)
    chat = bases.load_chat(settings.model)
    data = load_data(settings, chat)
    run: Any = SimpleNamespace(
        path=tmp_path,
        checkpoints=tmp_path / "checkpoints",
        metrics=lambda *_: None,
        write_json=lambda *_: None,
    )
    nothing: Any = SimpleNamespace(metrics=lambda *_: None, update=lambda *_, **__: None)
    trainer = build_trainer(settings, data, chat, run, nothing, nothing, [])
    randomise(trainer.model, seed=3, scale=0.1)
    return trainer, data.training


def test_a_run_learns_and_leaves_a_policy(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if "loss/total" in row]
    assert len(updates) == 6
    assert updates[0]["reward/margin"] == 0.0, "a fresh adapter is the reference"
    assert max(row["reward/margin"] for row in updates) > 0.02
    assert sum("validation/accuracy" in row for row in rows) == 2
    result = json.loads((trained / "eval.json").read_text())
    low, high = result["intervals"]["overall"]
    assert 0 <= low <= result["overall"] <= high <= 1
    assert sum(part["count"] for part in result["subsets"].values()) == result["count"]
    adapter = read_policy(trained / "final")
    assert adapter.card["method"] == "dpo" and adapter.card["loss"] == "scaled"
    assert "held-out pairs" in (trained / "final" / "README.md").read_text()
    report = (trained / "report.html").exists()
    assert not report, "the command writes it"


@pytest.mark.parametrize("budget", [256, 4096])
def test_the_loss_is_that_of_trl(config: Path, tmp_path: Path, budget: int) -> None:
    """TRL's own `_compute_loss` on padded rows of the same token ids, and its gradient."""
    trainer, pairs = trainer_of(config, tmp_path, "loss=regular", f"tokens_per_batch={budget}", "beta=0.3")
    chosen = pairs[:5]
    examples = [
        {
            "prompt_ids": list(pair.chosen.prompt_ids),
            "chosen_ids": list(pair.chosen.completion_ids),
            "rejected_ids": list(pair.rejected.completion_ids),
        }
        for pair in chosen
    ]
    inputs = DataCollatorForPreference(pad_token_id=trainer.processing_class.pad_token_id)(examples)
    trainer.model.train()
    expected = DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    expected.backward()
    gradient = gradients(trainer)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, {"pairs": chosen})
    assert loss.item() == pytest.approx(expected.item(), abs=2e-5)
    for name, value in gradients(trainer).items():
        assert torch.allclose(value, gradient[name], atol=2e-5), name
    metrics = trainer._metrics["train"]
    for ours, theirs in {"reward/chosen": "rewards/chosen", "reward/margin": "rewards/margins"}.items():
        assert trainer.figures[ours] == pytest.approx(metrics[theirs][-1], abs=1e-4)


def gradients(trainer: PackedDPOTrainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.requires_grad and p.grad is not None}


def test_the_card_marks_synthetic_data(config: Path, tmp_path: Path) -> None:
    words = ["data.preferences=[{path: demo, format: helpsteer2-preference}]"]
    settings = load_config(config, DPOConfig, words, tmp_path)
    assert "- demo (helpsteer2-preference, train); **synthetic**" in card_text(settings, tmp_path)


def test_packing_changes_no_margin(config: Path, tmp_path: Path) -> None:
    trainer, pairs = trainer_of(config, tmp_path)
    together = trainer.margins(pairs[:6])
    alone = [trainer.margins([pair])[0] for pair in pairs[:6]]
    assert together == pytest.approx(alone, abs=1e-5)
    assert max(map(abs, together)) > 1e-3
    swapped = [TokenizedPair(pair.rejected, pair.chosen, pair.strength, pair.source) for pair in pairs[:6]]
    assert trainer.margins(swapped) == pytest.approx([-margin for margin in together], abs=1e-5)


def test_a_killed_run_resumes(config: Path, trained: Path, tmp_path: Path) -> None:
    settings = load_config(config, DPOConfig, (), tmp_path / "run")
    train_dpo(settings)
    for folder in (tmp_path / "run/checkpoints").glob("step-6"):
        (folder / MANIFEST).unlink()
    train_dpo(settings, resume=True)
    first, again = (read_policy(run / "final").weights for run in (trained, tmp_path / "run"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_second_round_starts_from_a_policy_which_is_its_reference(
    config: Path, trained: Path, tiny_reward: Path, rlhf_command: Callable[..., Result], tmp_path: Path
) -> None:
    words = [f"start={trained / 'final'}", "max_steps=4", "save_every=2"]
    settings = load_config(config, DPOConfig, words, tmp_path / "run")
    train_dpo(settings)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    margins = [row["reward/margin"] for row in rows if "reward/margin" in row]
    assert margins[0] == pytest.approx(0, abs=1e-5), "the policy is its reference, which is not the base"
    assert any(abs(margin) > 1e-3 for margin in margins[1:])
    first, second = (read_policy(run / "final") for run in (trained, tmp_path / "run"))
    assert second.card["start"] == str(trained / "final")
    assert first.weights.keys() == second.weights.keys(), "the reference is not saved"
    moved = [(second.weights[name] - first.weights[name]).abs().max().item() for name in first.weights]
    assert 0 < max(moved) < 0.1, "four updates from there, not six from nothing"
    for folder in (tmp_path / "run/checkpoints").glob("step-4"):
        (folder / MANIFEST).unlink()
    train_dpo(settings, resume=True)
    again = read_policy(tmp_path / "run/final").weights
    assert all(torch.equal(second.weights[name], again[name]) for name in again)
    dry = rlhf_command("train-dpo", config, words[0], "--dry-run")
    assert f"a frozen copy of {trained / 'final'}" in " ".join(dry.stdout.split())
    refused = rlhf_command("train-dpo", config, f"start={tiny_reward}", "--dry-run")
    assert (refused.exit_code, "Traceback" in refused.output) == (2, False), refused.output


def test_a_failed_evaluation_loses_neither_weights_nor_result(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("No margin.")

    monkeypatch.setattr(PackedDPOTrainer, "margins", fail)
    with pytest.raises(RunError) as caught:
        train_dpo(load_config(config, DPOConfig, ["max_steps=1"], tmp_path / "run"))
    assert "No margin." in caught.value.found
    assert read_policy(tmp_path / "run" / "final").weights
    (failure,) = json.loads((tmp_path / "run" / "eval.json").read_text())["failures"]
    assert failure["step"] == "the held-out pairs"


def test_preferences_become_pairs(tiny_chat: Chat) -> None:
    records = [
        Preference(PROMPT, "Tea is a drink.", "No idea.", -2),
        Preference(PROMPT, "No idea.", "Tea is a drink.", 1),
        Preference(PROMPT, "long " * 400, "Short.", 1),
        Preference(PROMPT, "Same.", "Same.", 1),
    ]
    first, second, *others = make_pairs(records, tiny_chat, 200)
    assert isinstance(first, TokenizedPair) and isinstance(second, TokenizedPair)
    assert (first.chosen, first.rejected, first.strength) == (second.chosen, second.rejected, 2)
    assert first.chosen.text == "Tea is a drink."
    assert list(first.chosen.prompt_ids) == tiny_chat.prompt_ids(PROMPT)
    assert first.chosen.completion_ids[-1] in tiny_chat.stop_ids
    assert tiny_chat.decode(first.chosen.completion_ids) == "Tea is a drink."
    assert others == [TOO_LONG, SAME_IDS]


@pytest.mark.parametrize(
    ("ids", "expected"), [([5, 2, 9], (5, 2)), ([5, 9], (5, 9)), ([2, 5, 2], (2, 5, 2)), ([], ())]
)
def test_an_answer_ends_at_its_last_stop_id(ids: Sequence[int], expected: Sequence[int]) -> None:
    assert answer_ids(ids, [2]) == expected


def test_a_template_that_rewrites_the_prompt_is_counted(
    tiny_chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = iter([[7, 7]])
    monkeypatch.setattr(tiny_chat, "prompts_ids", lambda _: prompts)
    assert list(make_pairs([Preference(PROMPT, "a", "b", 1)], tiny_chat, 200)) == [NOT_A_PREFIX]


def test_pairs_keep_domain_and_language(tiny_chat: Chat) -> None:
    groups = {"domain": "code", "language": "go"}
    (pair,) = make_pairs([Preference(PROMPT, "a", "b", 1, groups=groups)], tiny_chat, 200)
    assert isinstance(pair, TokenizedPair) and pair.groups == groups


def test_prompts_of_an_evaluation_are_left_out(config: Path, tmp_path: Path) -> None:
    settings = load_config(config, DPOConfig, (), tmp_path)
    chat = bases.load_chat(settings.model)
    everything = load_data(settings, chat)
    rows = [json.loads(line) for line in (config.parent / "rows.jsonl").read_text().splitlines()]
    excluded = tmp_path / "prompts.jsonl"
    excluded.write_text(json.dumps({"prompt": rows[0]["prompt"]}) + "\n")
    less = load_data(load_config(config, DPOConfig, [f"data.exclude=[{{path: {excluded}}}]"], tmp_path), chat)
    assert less.drops.reasons[EXCLUDED] >= 1
    assert "rows.jsonl:" in less.drops.examples[EXCLUDED][0]
    before, after = (len(data.training) + len(data.validation) for data in (everything, less))
    assert after == before - less.drops.reasons[EXCLUDED]
    texts = {chat.decode(pair.chosen.prompt_ids) for pair in (*less.training, *less.validation)}
    assert not any(rows[0]["prompt"] in text for text in texts)


def test_a_resumed_run_excludes_the_same_prompts(config: Path, tmp_path: Path) -> None:
    excluded = tmp_path / "prompts.jsonl"
    excluded.write_text('{"prompt": "Another question?"}\n')
    words = [f"data.exclude=[{{path: {excluded}}}]", "max_steps=1"]
    settings = load_config(config, DPOConfig, words, tmp_path / "run")
    train_dpo(settings)
    excluded.write_text('{"prompt": "A third question?"}\n')
    with pytest.raises(ConfigError) as caught:
        train_dpo(settings, resume=True)
    assert "data.exclude.0.path" in caught.value.found


def write_pairs(folder: Path, **columns: Any) -> str:
    rows = [
        {"prompt": f"Question {n}", "chosen": f"Good {n}", "rejected": f"Bad {n}", **columns}
        for n in range(30)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.preferences=[{{path: {file}}}]"


@pytest.mark.parametrize("loss", ["margin", "scaled"])
def test_losses_with_a_strength_refuse_data_without_one(config: Path, tmp_path: Path, loss: str) -> None:
    words = [write_pairs(tmp_path), f"loss={loss}"]
    settings = load_config(config, DPOConfig, words, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        train_dpo(settings)
    assert "loss=regular" in (caught.value.fix or "") and loss in caught.value.found
    load_data(
        load_config(config, DPOConfig, [words[0], "loss=regular"], tmp_path), bases.load_chat(settings.model)
    )


def test_nothing_to_train_on(config: Path, tmp_path: Path) -> None:
    settings = load_config(config, DPOConfig, ["model.max_length=20"], tmp_path)
    with pytest.raises(DataError) as caught:
        load_data(settings, bases.load_chat(settings.model))
    assert TOO_LONG in caught.value.found and "model.max_length" in (caught.value.fix or "")
    held = load_config(config, DPOConfig, ["data.validation_share=1"], tmp_path)
    with pytest.raises(DataError) as caught:
        load_data(held, bases.load_chat(held.model))
    assert (caught.value.fix or "").startswith("data.validation_share=0 ")


@pytest.mark.parametrize("words", ["beta=0", "loss=hinge", "adapter.dropout=0.1", "batch_size=0", "gamma=1"])
def test_settings_that_are_refused(config: Path, words: str) -> None:
    with pytest.raises(ConfigError):
        load_config(config, DPOConfig, [words])


def test_the_evaluation_counts_ties_as_wrong() -> None:
    def pair(chosen: str, rejected: str, source: str) -> TokenizedPair:
        sides = [Rollout((1,), (2,), (), True, text) for text in (chosen, rejected)]
        return TokenizedPair(sides[0], sides[1], 1, source, {"domain": f"domain of {source}"})

    pairs = [pair("longer", "x", "a"), pair("x", "longer", "a"), pair("y", "longer", "b")]
    result = evaluation(pairs, [0.5, 0.0, -1.0])
    assert result["overall"] == pytest.approx(1 / 3) == result["length_baseline"]
    for part, prefix in ((result["subsets"], ""), (result["groups"]["domain"], "domain of ")):
        figures = {name: (shares["accuracy"], shares["count"]) for name, shares in part.items()}
        assert figures == {f"{prefix}a": (0.5, 2), f"{prefix}b": (0.0, 1)}
    assert evaluation([], []) == {}


def test_the_command_line(
    rlhf_command: Callable[..., Result], config: Path, tiny_base: Path, tmp_path: Path
) -> None:
    done = rlhf_command("train-dpo", config, "max_steps=2", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "run/report.html").read_text()
    assert "Direct preference optimisation" in page and "The policy&#39;s implicit reward" in page
    again = rlhf_command("train-dpo", config, "max_steps=2", "--output", tmp_path / "run")
    assert (again.exit_code, "Traceback" in again.output) == (2, False)
    dry = rlhf_command("train-dpo", config, "--dry-run")
    assert dry.exit_code == 0 and "6 updates of 4" in dry.output
    taken = rlhf_command("train-dpo", config, "--dry-run", "--output", tmp_path / "run")
    assert taken.exit_code == 0 and "is not empty" in taken.output
    base = SharedBase.load(str(tiny_base), dtype="float32")
    base.add_policy(tmp_path / "run/final")
    assert base.answer(["What is tea?"], policy="policy", max_new_tokens=3)


@pytest.mark.parametrize("command", ["doctor", "inspect", "plan"])
def test_other_commands_name_the_one_that_checks_it(
    rlhf_command: Callable[..., Result], config: Path, command: str
) -> None:
    failed = rlhf_command(command, config)
    assert (failed.exit_code, "Traceback" in failed.output) == (2, False), failed.output
    assert "rlhf train-dpo" in failed.output and "--dry-run" in failed.output
