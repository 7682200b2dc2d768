"""`rlhf export`, and `rlhf evaluate-reward` and `rlhf score` on what it wrote: the rewards of the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Rlhf = Callable[..., Result]

PAIRS = [
    {
        "prompt": f"Count to {number}.",
        "chosen": "One, two. " * number,
        "rejected": "No.",
        "subset": "counting",
    }
    for number in (1, 2, 5)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return file


def rewards(rlhf: Rlhf, model: Path, pairs: Path, *options: str) -> list[float]:
    output = pairs.parent / f"eval-{model.name}.json"
    result = rlhf("evaluate-reward", model, "--data", pairs, "--output", output, *options)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in output.with_name(f"{output.stem}_rows.jsonl").read_text().splitlines()
    ]
    return [row[side] for row in rows for side in ("reward_chosen", "reward_rejected")]


@pytest.mark.parametrize("form", ["classifier", "nemotron"])
def test_an_exported_model_is_judged_like_the_adapter(
    rlhf_command: Rlhf, tiny_reward: Path, pairs: Path, tmp_path: Path, form: str
) -> None:
    model = tmp_path / form
    words = ["export", tiny_reward, "--output", model, "--form", form, "--dtype", "float32"]
    result = rlhf_command(*words)
    assert result.exit_code == 0, result.output
    assert "Largest difference of scores before and after the merge: " in result.stdout
    assert "over 8 conversations (allowed: 0.001)." in result.stdout
    assert ("Do not generate text" in result.stdout) == (form == "nemotron")
    before = rewards(rlhf_command, tiny_reward, pairs)
    # A classifier is known by its config; a causal model needs `--form` to be a reward model.
    options = ["--form", "nemotron"] if form == "nemotron" else []
    assert rewards(rlhf_command, model, pairs, *options) == pytest.approx(before, abs=1e-3)
    assert max(before) - min(before) > 0.1
    again = rlhf_command(*words)
    assert again.exit_code == 2 and "--output" in again.stderr


def test_scores_of_a_named_output(rlhf_command: Rlhf, tiny_reward: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert rlhf_command("export", tiny_reward, "--output", model).exit_code == 0
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(talk) + "\n")
    words = ["score", model, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    result = rlhf_command(*words, "--label", "verbosity")
    assert result.exit_code == 0, result.output
    scored = json.loads((tmp_path / "out.jsonl").read_text())
    assert scored["reward"] == scored["attributes"]["verbosity"] != scored["attributes"]["helpfulness"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--dtype", "nf4"], "4-bit"),
        (["MODEL", "--quantization", "nf4"], "4-bit"),
        (["MODEL", "--dtype", "float"], "--dtype float"),
        (["MODEL", "--form", "ours"], "--form ours"),
        (["nowhere"], "nowhere"),
        (["BASE"], "base"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    rlhf_command: Rlhf, tiny_reward: Path, tiny_base: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    places = {"MODEL": tiny_reward, "BASE": tiny_base}
    result = rlhf_command("export", *(places.get(word, word) for word in words), "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
