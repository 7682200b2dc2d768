"""A resumed run needs inputs with the same content, at any path."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from rlhf.core.errors import ConfigError
from rlhf.runs import inputs as module
from rlhf.runs.folder import RunFolder
from rlhf.runs.inputs import check_inputs, digest_of_path, inputs_of


class Source(BaseModel):
    path: str


class Data(BaseModel):
    prompts: list[Source]


class Config(BaseModel):
    output: Path = Path("runs/x")
    reward: str
    data: Data


def config(data: Path, reward: Path) -> Config:
    return Config(reward=str(reward), data=Data(prompts=[Source(path=str(data))]))


def open_run(folder: Path, config: Config, digest: str, *, resume: bool = False) -> None:
    with RunFolder.create(folder, config, resume=resume, command="align-policy") as run:
        check_inputs(run, inputs_of(config, {"data.prompts.0.path": digest}))
        run.metrics(1, {})


def write_reward(folder: Path, weights: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text(str(folder))
    return folder


def test_the_same_content_at_another_path_passes(tmp_path: Path) -> None:
    before = config(tmp_path / "a.jsonl", write_reward(tmp_path / "one", b"weights"))
    open_run(tmp_path / "run", before, "same")
    moved = config(tmp_path / "elsewhere.jsonl", write_reward(tmp_path / "two", b"weights"))
    open_run(tmp_path / "run", moved, "same", resume=True)


def test_other_content_is_refused_by_name(tmp_path: Path) -> None:
    before = config(tmp_path / "a.jsonl", write_reward(tmp_path / "one", b"weights"))
    open_run(tmp_path / "run", before, "same")
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path / "run", before, "other", resume=True)
    assert "data.prompts.0.path" in caught.value.found and str(tmp_path / "a.jsonl") in caught.value.found
    assert "reward:" not in caught.value.found and caught.value.exit_code == 2
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"trained again")
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path / "run", before, "same", resume=True)
    assert f"reward: {tmp_path / 'one'}" in caught.value.found and "prompts" not in caught.value.found


def test_other_keys_still_make_another_run(tmp_path: Path) -> None:
    before = config(tmp_path / "a.jsonl", write_reward(tmp_path / "one", b"weights"))
    open_run(tmp_path / "run", before, "same")
    more = before.model_copy(update={"data": Data(prompts=[*before.data.prompts, Source(path="b.jsonl")])})
    with pytest.raises(ConfigError):
        open_run(tmp_path / "run", more, "same", resume=True)


def test_the_digest_of_a_function_is_that_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "length.py"
    file.write_text("def length(): ...\n")
    settings = {
        "reward": [{"function": f"{file}:length", "adapter": None}, {"function": "gold"}],
        "start": None,
    }
    (key,) = module.path_inputs(settings)
    before = module.path_inputs(settings)[key]
    assert (key, before.path) == ("reward.0.function", f"{file}:length")
    file.write_text("def length(): return 1\n")
    assert module.path_inputs(settings)[key].digest != before.digest


def test_the_digest_of_a_large_file_covers_its_size_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_UP_TO", 8)
    monkeypatch.setattr(module, "ENDS", 2)
    file = tmp_path / "weights"

    def digest(content: bytes) -> str:
        file.write_bytes(content)
        return digest_of_path(file)

    start = digest(b"ab______yz")
    assert (
        digest(b"ab_______yz") != start and digest(b"aa______yz") != start and digest(b"ab______yy") != start
    )
    assert digest(b"ab______yz") == start
