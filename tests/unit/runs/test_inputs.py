"""A resumed run needs inputs with the same content, at any path."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from rlhf.core.errors import ConfigError
from rlhf.runs import inputs as module
from rlhf.runs.folder import RunFolder
from rlhf.runs.inputs import check_base, check_inputs, digest_of_path, inputs_of


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


class Rewarded(BaseModel):
    output: Path = Path("runs/x")
    start: str | None = None
    reward: list[dict[str, str]]


def reopen(folder: Path, config: Rewarded, *, resume: bool) -> None:
    with RunFolder.create(folder, config, resume=resume, command="align-policy") as run:
        check_inputs(run, inputs_of(config, {}))
        run.metrics(1, {})


def test_a_reward_function_may_be_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.py"
    file.write_text("def a(**_): return 1 / 0\n")
    config = Rewarded(reward=[{"function": f"{file}:a"}])
    reopen(tmp_path / "run", config, resume=False)
    file.write_text("def a(**_): return [0.0]\n")
    reopen(tmp_path / "run", config, resume=True)
    assert f"{file}:a (reward.0.function) has changed" in capsys.readouterr().out
    reopen(tmp_path / "run", config, resume=True)
    assert "has changed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "another", "named"),
    [
        ({"function": "{0}/f.py:a"}, {"function": "{0}/f.py:b"}, "f.py:b (was"),
        ({"function": "{0}/f.py:a"}, {"function": "module:a"}, "no file or folder here (was"),
        ({"classifier": "{0}/one"}, {"classifier": "org/other"}, "no file or folder here (was"),
    ],
)
def test_another_reward_is_refused_also_where_there_is_no_content_to_compare(
    tmp_path: Path, source: dict[str, str], another: dict[str, str], named: str
) -> None:
    (tmp_path / "f.py").write_text("def a(): ...\ndef b(): ...\n")
    write_reward(tmp_path / "one", b"weights")

    def rewarded(reward: dict[str, str]) -> Rewarded:
        return Rewarded(reward=[{key: value.format(tmp_path) for key, value in reward.items()}])

    reopen(tmp_path / "run", rewarded(source), resume=False)
    reopen(tmp_path / "run", rewarded(source), resume=True)
    with pytest.raises(ConfigError) as caught:
        reopen(tmp_path / "run", rewarded(another), resume=True)
    assert "reward.0." in caught.value.found and named in caught.value.found


def test_a_start_that_is_left_out_is_refused(tmp_path: Path) -> None:
    start = write_reward(tmp_path / "policy", b"weights")
    reopen(tmp_path / "run", Rewarded(start=str(start), reward=[{}]), resume=False)
    with pytest.raises(ConfigError, match="start: no file or folder here"):
        reopen(tmp_path / "run", Rewarded(reward=[{}]), resume=True)


def test_the_base_is_compared_by_itself(tmp_path: Path) -> None:
    start = write_reward(tmp_path / "policy", b"weights")
    settings = Rewarded(start=str(start), reward=[{}])
    reopen(tmp_path / "run", settings, resume=False)
    with RunFolder.create(tmp_path / "run", settings, resume=True, command="align-policy") as run:
        check_base(run, "org/base", "weights")
        check_base(run, "elsewhere/base", "weights")
        with pytest.raises(ConfigError, match=r"model.base: org/base \(was elsewhere/base\)"):
            check_base(run, "org/base", "other weights")


def test_a_chat_template_that_is_a_file_is_an_input(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    first = module.path_inputs({"model": {"chat_template": str(file)}})
    file.write_text("{{ messages }}!")
    second = module.path_inputs({"model": {"chat_template": str(file)}})
    assert first.keys() == second.keys() == {"model.chat_template"} and first != second
    assert module.path_inputs({"model": {"chat_template": "{{ messages }}"}}) == {}


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
