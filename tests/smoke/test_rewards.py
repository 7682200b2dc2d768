"""Rewards of every kind through the real commands: models in this process, a served one, functions, and one
that only watches."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from typer.testing import Result

Rlhf = Callable[..., Result]
TOKEN = "a-token-of-the-test"

FUNCTIONS = """
def brevity(completion_ids, **kwargs):
    return [1.0 / len(ids) for ids in completion_ids]

def picky(completions, **kwargs):
    '''No opinion on every third answer.'''
    return [None if place % 3 == 2 else float(len(one[0]["content"])) for place, one in
    enumerate(completions)]

def silent(completions, **kwargs):
    return [None for _ in completions]
"""


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("functions") / "my_rewards.py"
    file.write_text(FUNCTIONS)
    return file


@pytest.fixture(scope="module")
def classifier(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of two outputs."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    torch.manual_seed(3)
    config = LlamaConfig.from_pretrained(tiny_base, id2label={0: "bad", 1: "good"})
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(LlamaForCausalLM.from_pretrained(tiny_base).model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tiny_reward: Path) -> Iterator[str]:
    """`rlhf serve-reward` in a process of its own; yields its address."""
    command = [
        sys.executable,
        "-c",
        "from rlhf.cli import main; main()",
        "serve-reward",
        str(tiny_reward),
        "--port",
        "0",
    ]
    environment = os.environ | {"RLHF_REWARD_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    printed = process.stdout.readline()
    result = re.search(r"http://127\.0\.0\.1:\d+", printed)
    assert result is not None, printed
    yield result[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stdout.read() == "Stopped.\n"


def test_all_kinds_at_once(
    rlhf_command: Rlhf,
    policy_config: Path,
    tiny_reward: Path,
    classifier: Path,
    server: str,
    functions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)
    held_out = shutil.copytree(tiny_reward, tmp_path / "held_out")  # the same weights, as one more role
    sources = [
        str(tiny_reward),
        {"classifier": str(classifier), "label": "good", "weight": -0.5},
        {"server": server, "weight": 2},
        {"function": f"{functions}:brevity", "weight": 3},
        {"function": "gold", "weight": 0},
    ]
    words = [
        f"reward={json.dumps(sources)}",
        "reward_shaping={normalise: batch, clip: [-1, 1], length_penalty: {per_token: 0.125, above: 2}}",
        f"held_out_reward={{adapter: {held_out}, every: 2}}",
    ]
    result = rlhf_command("align-policy", policy_config, *words, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    weights = {"adapter": 1.0, "classifier": -0.5, "server": 2.0, "brevity": 3.0, "gold": 0.0}
    for row in lines(tmp_path / "run" / "metrics.jsonl"):
        parts = {name: row[f"reward/{name}"] for name in weights}
        assert row["reward/mean"] == pytest.approx(
            sum(weights[name] * parts[name] for name in weights), abs=1e-4
        )
        assert row["reward/server"] == pytest.approx(row["reward/adapter"], abs=1e-4)  # the same model
        assert row["reward/gold"] == pytest.approx(row["gold/mean"], abs=1e-6)
        assert len({round(value, 3) for value in parts.values()}) == 4
        # Normalised rewards have the mean 0, so what is left is what clipping and length took.
        assert -1.5 <= row["reward/shaped"] <= 0.0
        assert ("reward/held_out" in row) == (row["step"] % 2 == 1)
        assert row.get("reward/held_out", parts["adapter"]) == pytest.approx(parts["adapter"], abs=1e-4)
        assert row["reward/missing"] == 0
    for sample in lines(tmp_path / "run" / "samples.jsonl"):
        whole = sum(weights[name] * sample[f"reward/{name}"] for name in weights)
        assert sample["reward"] == pytest.approx(whole, abs=1e-4)
        longer = max(0, sample["length"] - 2)
        assert abs(sample["reward/shaped"] + 0.125 * longer) <= 1
    evaluation = json.loads((tmp_path / "run" / "eval.json").read_text())
    for side in ("before", "after"):
        assert math.isfinite(evaluation[side]["reward"]) and math.isfinite(evaluation[side]["held_out"])
        assert evaluation["answers"][0][side]["held_out"] != evaluation["answers"][0][side]["reward"]
    assert "held-out" in result.output
    assert "Held-out reward" in (tmp_path / "run" / "report.html").read_text()
    card = json.loads((tmp_path / "run" / "final" / "policy.json").read_text())
    assert [item["weight"] for item in card["reward"]] == [1.0, -0.5, 2.0, 3.0, 0.0]
    assert TOKEN not in "".join(
        file.read_text() for file in (tmp_path / "run").rglob("*") if file.suffix in (".json", ".yaml", ".md")
    )


def test_a_dropped_answer_is_counted(
    rlhf_command: Rlhf, policy_config: Path, functions: Path, tmp_path: Path
) -> None:
    words = [
        f"reward={{function: '{functions}:picky'}}",
        "reward_shaping.missing=drop",
        "--output",
        tmp_path / "run",
    ]
    result = rlhf_command("align-policy", policy_config, *words)
    assert result.exit_code == 0, result.output
    samples = lines(tmp_path / "run" / "samples.jsonl")
    assert [sample["reward"] is None for sample in samples] == [False, False, True] * 6
    assert {sample.get("missing") for sample in samples} == {None, "picky: it returned None"}
    for row in lines(tmp_path / "run" / "metrics.jsonl"):
        known = [s["reward"] for s in samples if s["step"] == row["step"] and s["reward"] is not None]
        assert row["reward/missing"] == 2
        assert row["reward/mean"] == pytest.approx(sum(known) / 4)
    evaluation = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert evaluation["missing"] == {"before": 2, "after": 2}  # of 3 prompts with 2 answers each
    assert "2 of 6 answers have no reward and are left out" in result.output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["reward={{function: '{functions}:picky'}}"],
            1,
            "picky: it returned None",
        ),
        (
            ["reward={{function: '{functions}:silent'}}", "reward_shaping.missing=drop"],
            1,
            "silent: it returned None",
        ),
        (
            ["reward={{function: '{functions}:brevty'}}"],
            2,
            "'brevity'",
        ),
        (
            ["reward={{server: '{server}', token_env: WRONG}}"],
            2,
            "WRONG (status 401)",
        ),
        (["reward={{server: 'http://127.0.0.1:9'}}"], 2, "http://127.0.0.1:9 "),
        (["reward={{classifier: '{base}'}}"], 2, "LlamaForCausalLM"),
        (["held_out_reward={base}"], 2, "reward model"),
    ],
)  # fmt: skip
def test_what_cannot_go_on(
    rlhf_command: Rlhf,
    policy_config: Path,
    functions: Path,
    server: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)
    monkeypatch.setenv("WRONG", "wrong-wrong")
    settings = [word.format(functions=functions, server=server, base=tiny_base) for word in words]
    result = rlhf_command("align-policy", policy_config, *settings, "--output", tmp_path / "run")
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert "Traceback" not in result.output
    if code == 2:  # nothing of it is left
        assert [file.name for file in (tmp_path / "run").iterdir() if file.name != ".lock"] == []


def test_a_dry_run_says_what_answers_are_worth(
    rlhf_command: Rlhf, policy_config: Path, functions: Path, tmp_path: Path
) -> None:
    words = [
        f"reward={{function: '{functions}:brevity', weight: 2}}",
        "reward_shaping.normalise=running",
        "--dry-run",
    ]
    result = rlhf_command("align-policy", policy_config, *words, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"Reward: 2 x function {functions}:brevity" in result.stdout
    assert "normalised by the running mean and deviation" in result.stdout
