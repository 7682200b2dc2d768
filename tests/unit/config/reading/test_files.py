"""`extends`: what of another file is kept, what is replaced, and where a mistake is expected to stand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reading.either import load_either
from rlhf.config.reading.files import read_keys
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError

BASE = """\
output: runs/base
seed: 3
model:
  base: embedded
  max_length: 512
adapter: {targets: [q_proj, v_proj]}
data:
  ratings: [{path: demo, format: helpsteer2}]
stages:
  - {name: first, regression_weight: 1, batch_size: 8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def write(folder: Path, text: str, name: str = "small/card.yaml") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_mappings_are_merged_and_lists_replaced(folder: Path) -> None:
    file = write(
        folder, "extends: ../base.yaml\nmodel: {max_length: 128}\nadapter: {rank: 4, targets: [o_proj]}\n"
    )
    loaded = load_config(file, RewardConfig, ["model.dtype=float32"])
    assert (loaded.model.base, loaded.model.max_length, loaded.model.dtype) == ("embedded", 128, "float32")
    assert (loaded.adapter.rank, loaded.adapter.targets) == (4, ["o_proj"])
    assert (loaded.seed, str(loaded.output), loaded.stages[0].batch_size) == (3, "runs/base", 8)


def test_a_chain_is_followed_to_its_end(folder: Path) -> None:
    write(folder, "extends: ../base.yaml\nseed: 4\nmodel: {max_length: 128}\n", "small/middle.yaml")
    loaded = load_config(write(folder, "extends: middle.yaml\nmodel: {max_length: 64}\n"), RewardConfig)
    assert (loaded.seed, loaded.model.max_length, loaded.model.base) == (4, 64, "embedded")


def test_what_a_config_is_for_may_stand_in_the_file_it_extends(folder: Path) -> None:
    write(folder, "output: x\nreward: runs/x\ndata: {prompts: [{path: demo}]}\n", "policy.yaml")
    file = write(folder, "extends: policy.yaml\nsteps: 5\n", "few.yaml")
    loaded = load_either(file)
    assert isinstance(loaded, PolicyConfig) and loaded.steps == 5


@pytest.mark.parametrize(
    ("text", "wrong", "place"),
    [
        ("model: {max_length: 0}\n", "model.max_length: ", "card.yaml:2"),
        ("seed: 4\n", "stages.0.batch_size", "base.yaml:10"),
        (
            "stages:\n  - {name: a, batch_size: 0, regression_weight: 1}\n",
            "batch_size",
            "card.yaml:3",
        ),
        # The list is this file's: what one of its items lacks is not looked for in the other's.
        ("stages:\n  - {regression_weight: 1}\n", "'stages.0.name'", "card.yaml:3"),
    ],
)
def test_a_mistake_is_placed_in_the_file_where_it_stands(
    folder: Path, text: str, wrong: str, place: str
) -> None:
    (folder / "base.yaml").write_text(BASE.replace("batch_size: 8", "batch_size: 0"))
    with pytest.raises(ConfigError) as error:
        load_config(write(folder, f"extends: ../base.yaml\n{text}"), RewardConfig)
    lines = [line for line in error.value.found.splitlines() if wrong in line]
    assert len(lines) == 1 and place in lines[0], error.value.found


@pytest.mark.parametrize(
    ("text", "result", "remedy"),
    [
        (
            "extends: card.yaml\n",
            "card.yaml:1: extends: card.yaml ",
            "`extends`",
        ),
        ("seed: 1\nextends: 5\n", "card.yaml:2: extends: ", "YAML file"),
        ("extends: ../bse.yaml\n", "card.yaml:1: extends ", "base.yaml"),
        ("extends: list.yaml\n", "list.yaml", "key: value"),
        (
            "extends: back.yaml\n",
            "back.yaml:1: extends: card.yaml ",
            "`extends`",
        ),
    ],
)
def test_what_cannot_be_extended(folder: Path, text: str, result: str, remedy: str) -> None:
    file = write(folder, text)
    write(folder, "- a\n", "small/list.yaml")
    write(folder, "extends: card.yaml\n", "small/back.yaml")
    with pytest.raises(ConfigError) as error:
        read_keys(file)
    assert result in error.value.found
    assert remedy in f"{error.value.found} {error.value.allowed} {error.value.fix}"
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("0x10", 16), ("1_000", 1000), ("-0", 0), ("7", 7)])
def test_numbers_of_yaml_1_1_that_are_not_what_they_look_like(tmp_path: Path, text: str, value: int) -> None:
    class Schema(BaseModel):
        steps: int

    file = tmp_path / "c.yaml"
    file.write_text(f"steps: {text}\n")
    assert load_config(file, Schema).steps == value
    assert load_config(file, Schema, [f"steps={text}"]).steps == value
    file.write_text("steps: 1:30\n")
    with pytest.raises(ConfigError):
        load_config(file, Schema)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_the_fix_converts_a_config_of_another_encoding(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "my config.yaml"
    file.write_bytes("name: Blü\n".encode(encoding))
    with pytest.raises(ConfigError) as caught:
        read_keys(file)
    subprocess.run(caught.value.fix, shell=True, check=True, cwd=tmp_path)
    assert read_keys(tmp_path / "utf8.yaml")[0] == {"name": "Blü"}


def test_extends_of_a_linked_file_is_relative_to_the_link_or_to_the_file(tmp_path: Path) -> None:
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    (real / "base.yaml").write_text("seed: 1\n")
    (real / "c.yaml").write_text("extends: base.yaml\n")
    (links / "c.yaml").symlink_to(real / "c.yaml")
    assert read_keys(links / "c.yaml")[0] == {"seed": 1}
    (links / "base.yaml").write_text("seed: 2\n")
    assert read_keys(links / "c.yaml")[0] == {"seed": 2}


def test_a_link_to_itself_is_not_suggested(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError) as caught:
        read_keys(loop)
    assert "symbolic link" in caught.value.found
    assert "mean" not in caught.value.found
