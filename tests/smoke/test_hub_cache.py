"""Models in the Hub's cache are used by name, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from policy.evaluation.speaker import Speaker
from reward.load_scorer import load_scorer
from rlhf.adapters.storage import RewardAdapter, read_policy, read_role
from rlhf.core.errors import ModelError
from rlhf.core.hub import pushed_model
from rlhf.core.records import Message
from rlhf.models.checkpoint_folder import model_folder
from rlhf.runs.inputs import path_inputs

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


TALK = (Message("user", "Hi."), Message("assistant", "Yes."))


def push(hub: Path, name: str, final: Path, staged: Path) -> str:
    """A model in the cache as `rlhf push` uploads it, with the base's name on the Hub; its name."""
    shutil.copytree(final, staged)
    for file, key in (("reward.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        content = json.loads((staged / file).read_text()) | {key: "org/tiny"}
        (staged / file).write_text(json.dumps(content))
    (staged / "README.md").write_text("A card.")
    return cached(hub, name, staged)


def test_a_pushed_model_is_read_by_its_name(hub: Path, tiny_reward: Path, tmp_path: Path) -> None:
    name = push(hub, "org/pushed", tiny_reward, tmp_path / "staged")
    ours = load_scorer(tiny_reward).score([TALK])
    for written in (name, f"{name}@main", f"{name}@{COMMIT}"):
        assert load_scorer(written).score([TALK]) == ours
        assert RewardAdapter.read(Path(written)).lora.card["base"] == "org/tiny"
        assert isinstance(read_role(Path(written)), RewardAdapter)
    assert model_folder(name).name == COMMIT
    # A base or another's model is no model of this project, and is loaded by its own name.
    assert [pushed_model(other) for other in ("org/tiny", "org/cls", "org/none", "embedded")] == [None] * 4
    with pytest.raises(ModelError, match=f"{name} is not a policy .* it is a reward model") as caught:
        read_policy(Path(name))
    assert f"reward={name}" in caught.value.fix


def test_a_pushed_policy_answers_by_its_name(hub: Path, tiny_reward: Path, tmp_path: Path) -> None:
    staged = Path(shutil.copytree(tiny_reward, tmp_path / "final"))
    card = json.loads((staged / "reward.json").read_text()) | {"base": "org/tiny"}
    (staged / "reward.json").unlink()
    (staged / "policy.json").write_text(json.dumps(card))
    weights = staged / "adapter_model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if "lora" in key}
    save_file(kept, weights, metadata={"format": "pt"})
    speaker = Speaker.read(cached(hub, "org/spoken", staged))
    assert (speaker.name, speaker.model["base"]) == ("spoken", "org/tiny")
    assert speaker.folder is not None and speaker.folder.name == COMMIT


def test_only_needed_files_are_downloaded(
    hub: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pickle, no code, and no weights before the card shows a model of this project."""
    asked: list[list[str]] = []
    name = push(hub, "org/patterns", tiny_reward, tmp_path / "staged")
    snapshot = hub / "models--org--patterns" / "snapshots" / COMMIT

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pushed_model(name) == snapshot
    assert not any("safetensors" in file for file in asked[0])
    endings = {file.rpartition(".")[2] for files in asked for file in files}
    assert endings == {"json", "safetensors", "txt", "model", "jinja"}
    assert not any("*" in file for files in asked for file in files)


def test_a_resumed_run_needs_the_same_pushed_model(hub: Path, tiny_reward: Path, tmp_path: Path) -> None:
    name = push(hub, "org/inputs", tiny_reward, tmp_path / "staged")
    snapshot = hub / "models--org--inputs" / "snapshots" / COMMIT
    config = {"start": name, "reward": [{"adapter": name}], "model": {"base": "org/tiny"}}
    before = path_inputs(config)
    assert before.keys() == {"start", "reward.0.adapter"} and before["start"].path == name
    (snapshot / "README.md").unlink()
    assert path_inputs(config) == before
    (snapshot / "reward.json").unlink()
    (snapshot / "reward.json").write_text("{}")
    assert path_inputs(config)["start"].digest != before["start"].digest


@pytest.mark.slow
def test_a_pushed_model_is_scored_and_trained_by_name(
    hub: Path,
    reward_config: Path,
    policy_config: Path,
    tiny_reward: Path,
    rlhf_command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    name = push(hub, "org/commands", tiny_reward, tmp_path / "staged")
    talk = [{"role": message.role, "content": message.content} for message in TALK]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    for words in (
        ["score", name, "--input", tmp_path / "talks.jsonl", "--output", tmp_path / "scored.jsonl"],
        ["train-reward", reward_config, f"start={name}", "head_start=0", "--dry-run"],
        ["align-policy", policy_config, f"reward={name}", "--dry-run"],
        ["export", name, "--output", tmp_path / "merged", "--dtype", "float32"],
    ):
        result = rlhf_command(*words)
        assert result.exit_code == 0, (words, result.output)


def test_a_name_that_the_hub_lacks_is_refused(
    hub: Path, reward_config: Path, rlhf_command: Callable[..., Any], tmp_path: Path
) -> None:
    """The message is about the Hub, and does not say that OWNER/NAME is no folder."""
    for words in (
        ["train-reward", reward_config, "start=org/absent", "--dry-run"],
        ["export", "org/absent", "--output", tmp_path / "out"],
    ):
        result = rlhf_command(*words)
        assert result.exit_code == 2
        assert "HF_HUB_OFFLINE" in result.output and "hf download org/absent" in result.output
