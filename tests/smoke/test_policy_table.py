"""The policy table end to end on the tiny base: every row, resume, the scaled adapter, refused configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from policy.shared_base import SharedBase
from policy.table.rows import ROWS, TRAINED
from policy.table.run import model_of, write_prompts
from rlhf import cli
from rlhf.config.load import load_config
from rlhf.config.policy_table import PolicyTableConfig, row_config
from rlhf.config.reading.files import CONFIGS
from rlhf.core.errors import ConfigError
from rlhf.data.evaluation.answer_files import read_prompts

Rlhf = Callable[..., Result]


@pytest.fixture(scope="module")
def table_config(tiny_base: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("table")
    judge = Path(shutil.copytree(tiny_reward, folder / "judge"))
    file = folder / "table.yaml"
    file.write_text(f"""
output: {folder}/unused
model: {{base: {tiny_base}, dtype: float32, max_length: 400}}
adapter: {{rank: 4, alpha: 8}}
reward: {tiny_reward}
held_out_reward: {judge}
data:
  preferences: [{{path: demo, format: helpsteer2-preference, limit: 80}}]
  prompts: [{{path: demo, limit: 40}}]
  max_prompt_tokens: 200
dpo: {{max_steps: 2, batch_size: 4, optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}}}
ppo: {{steps: 1, algorithm: {{name: ppo, epochs: 1, unfinished: keep}}}}
reinforce:
  steps: 2
  algorithm: {{name: reinforce, unfinished: keep}}
  optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}
rollouts: {{engine: transformers, prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 5}}
tokens_per_batch: 512
evaluation: {{prompts: 4, samples: 2, best_of: 2, kl: 0.2, tries: 2, max_scale: 4}}
""")
    return file


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Rows are trained in this process instead of one each; returns the commands."""
    ran: list[list[str]] = []

    def run(*words: object) -> None:
        ran.append([str(word) for word in words])
        result = CliRunner().invoke(cli.app, ran[-1])
        assert result.exit_code == 0, result.output

    monkeypatch.setattr("rlhf.commands.policy_table.run_command", run)
    return ran


def test_every_row_is_trained_evaluated_and_kept(
    rlhf_command: Rlhf, table_config: Path, in_process: list[list[str]], tmp_path: Path
) -> None:
    words = ["policy-table", table_config, "--seeds", "1", "--output", tmp_path / "table"]
    done = rlhf_command(*words)
    assert done.exit_code == 0, done.output
    assert [command[0] for command in in_process] == ["train-dpo"] * 3 + ["align-policy"] * 2
    table = json.loads((tmp_path / "table/table.json").read_text())
    assert list(table["trained"]) == list(ROWS)
    assert all(0 <= row["win"]["mean"] <= 1 for row in table["trained"].values())
    assert table["trained"]["base"]["kl"] == 0 and table["prompts"] == 4
    assert table["trained"]["reinforce"]["kl"] != 0
    assert "REINFORCE" in (tmp_path / "table/report.html").read_text()
    evaluated, _ = read_prompts(str(tmp_path / "table/prompts/evaluation.jsonl"))
    training, _ = read_prompts(str(tmp_path / "table/prompts/training.jsonl"))
    assert not {prompt.messages for prompt in evaluated} & {prompt.messages for prompt in training}
    assert any(prompt.check is not None for prompt in training)

    in_process.clear()
    (tmp_path / "table/seed-0/evaluation/ppo.json").unlink()
    (tmp_path / "table/seed-0/dpo-margin/eval.json").unlink()
    before = (tmp_path / "table/seed-0/evaluation/reinforce.json").read_bytes()
    again = rlhf_command(*words)
    assert again.exit_code == 0, again.output
    assert [Path(command[3]).name for command in in_process] == ["dpo-margin"]
    assert in_process[0][-1] == "--resume"
    assert (tmp_path / "table/seed-0/evaluation/reinforce.json").read_bytes() == before
    assert json.loads((tmp_path / "table/table.json").read_text())["trained"] == table["trained"]

    other = rlhf_command(*words, "evaluation.samples=1")
    assert (other.exit_code, "Traceback" in other.output) == (2, False)
    assert "evaluation.samples" in other.output

    check_scale(tmp_path / "table", table_config)


def check_scale(table: Path, table_config: Path) -> None:
    """An adapter at half scale is the exact blend, and has a quarter of the KL or so."""
    config = load_config(table_config, PolicyTableConfig, (), table)
    prompts = write_prompts(config)
    held_out, _ = read_prompts(str(prompts["evaluation"]))
    model = model_of(config, prompts, held_out, 0)
    final = table / "seed-0/reinforce/final"
    model.set_policy(final, 0.5)
    base = SharedBase.load(str(config.model.base), dtype="float32")
    base.add_policy(final)
    base.blend("half", {"policy": 0.5})
    ids = torch.tensor([model.chat.prompt_ids(held_out[0].messages)])
    with torch.no_grad(), base._active("half"):
        expected = base._model(input_ids=ids).logits
        assert torch.allclose(model.model(input_ids=ids).logits, expected, atol=1e-4)
        assert not torch.allclose(base._model.get_base_model()(input_ids=ids).logits * 0, expected)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ppo.algorithm.name=reinforce", "ppo.algorithm.epochs=1"], "ppo"),
        (["reinforce.algorithm.name=rloo"], "reinforce"),
        (["held_out_reward=x", "reward=x"], "held_out_reward"),
        (["evaluation.kl=0"], "evaluation.kl"),
        (["dpo.loss=margin"], "dpo"),
        (["adapter.dropout=0.1"], "dpo-regular"),
        (["adapter.rank=2000", "rollouts.engine=vllm"], "ppo"),
    ],
)
def test_settings_that_are_refused(table_config: Path, words: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(table_config, PolicyTableConfig, words)
    assert named in str(caught.value)


def test_a_folder_with_something_else_is_left_alone(
    rlhf_command: Rlhf, table_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    failed = rlhf_command("policy-table", table_config, "--output", tmp_path)
    assert (failed.exit_code, "Traceback" in failed.output) == (2, False)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["demo", "local"])
def test_the_examples_are_configs(name: str) -> None:
    config = load_config(CONFIGS / "policy-table" / f"{name}.yaml", PolicyTableConfig)
    prompts = {"training": Path("a.jsonl"), "evaluation": Path("b.jsonl")}
    assert all(row_config(config, row, prompts, 0) for row in TRAINED)


def test_a_dry_run_prints_every_row(rlhf_command: Rlhf, table_config: Path, tmp_path: Path) -> None:
    dry = rlhf_command("policy-table", table_config, "--dry-run", "--output", tmp_path / "table")
    assert dry.exit_code == 0, dry.output
    assert all(ROWS[row].title in dry.output for row in TRAINED)
    assert not (tmp_path / "table").exists()
