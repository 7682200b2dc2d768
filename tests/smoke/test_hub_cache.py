"""Models in the Hub's cache are used by name, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(hub: Path, name: str, files: Path) -> str:
    """A repository as huggingface_hub stores it, with links from its snapshot to `blobs`; its name."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot, blobs, refs = repository / "snapshots" / COMMIT, repository / "blobs", repository / "refs"
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    for number, file in enumerate(files.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / str(number))
    return name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path) -> Path:
    """A cache with a base, `org/tiny`, and a classifier, `org/cls`."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(folder, "org/tiny", tiny_base)
    classifier = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(tiny_base, num_labels=1)
    )
    classifier.save_pretrained(tmp_path / "cls")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "cls")
    cached(folder, "org/cls", tmp_path / "cls")
    return folder


def test_a_cached_base_is_planned_trained_and_scored(
    hub: Path, reward_config: Path, rlhf_command: Callable[..., Any], tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    scored = ["--input", tmp_path / "talks.jsonl", "--output"]
    for words in (
        ["train-reward", reward_config, "model.base=org/tiny", "--dry-run"],
        ["train-reward", reward_config, "model.base=org/cls", "--dry-run"],
        ["plan", reward_config, "model.base=org/tiny"],
        ["train-reward", reward_config, "model.base=org/tiny", "--output", tmp_path / "run"],
        ["score", tmp_path / "run" / "final", *scored, tmp_path / "ours.jsonl"],
        ["score", "org/cls", *scored, tmp_path / "theirs.jsonl"],
    ):
        result = rlhf_command(*words)
        assert result.exit_code == 0, (words, result.output)
    assert json.loads((tmp_path / "run" / "final" / "reward.json").read_text())["base"] == "org/tiny"


def test_what_is_not_cached_is_refused_at_once(
    hub: Path, reward_config: Path, rlhf_command: Callable[..., Any]
) -> None:
    for words in (["model.base=org/tinny"], ["model.base=org/tiny", "model.revision=v9"]):
        result = rlhf_command("train-reward", reward_config, *words, "--dry-run")
        assert result.exit_code == 2
        assert "HF_HUB_OFFLINE" in result.output and words[-1].split("=")[1] in result.output


@pytest.mark.slow
def test_the_doctor_knows_a_cached_base(
    hub: Path, reward_config: Path, rlhf_command: Callable[..., Any]
) -> None:
    result = rlhf_command("doctor", reward_config, "model.base=org/tiny")
    assert "problem" not in result.output.splitlines()[-1], result.output
