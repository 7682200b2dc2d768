"""Models that bring their own code are refused in every door, without a prompt on stdin; caches that cannot
be written."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.core import hub
from rlhf.core.errors import ModelError, RlhfError
from rlhf.models import bases
from rlhf.models.bases import read_config
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal
from rlhf.plan.memory.shapes import load_shape

ROOT = Path(__file__).parents[3]
LOADERS = {
    "AutoConfig",
    "AutoTokenizer",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "auto_class",
}


@pytest.fixture
def with_code(tiny_base: Path, tmp_path: Path) -> Path:
    """A model whose config, tokenizer and weights are classes of its own files, which leave a trace if they
    run."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "custom"))
    trace = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "custom.py").write_text(f"{trace}class Config: ...\nclass Model: ...\nclass Tokenizer: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "custom_code",
        "auto_map": {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": ["custom.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: read_config(folder, None),
        lambda folder: load_causal(folder, revision=None, dtype="float32", quantization="none"),
        lambda folder: Chat.load(folder),
        lambda folder: load_shape(folder),
    ],
    ids=["config", "weights", "tokenizer", "plan"],
)
def test_code_of_a_model_is_never_run(
    load: Callable[[str], object], with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt on stdin"))
    with pytest.raises(RlhfError) as raised:
        load(str(with_code))
    assert raised.value.exit_code == 2
    assert "code" in raised.value.found
    assert not (tmp_path / "ran").exists()


def test_every_loading_call_refuses_remote_code() -> None:
    """`from_pretrained` of an auto class asks on stdin where `trust_remote_code` is left out."""
    silent = []
    for package in ("rlhf", "reward", "policy"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(ast.Attribute(ast.Name(name), "from_pretrained")) if name in LOADERS:
                        values = {word.arg: ast.unparse(word.value) for word in node.keywords}
                        if values.get("trust_remote_code") != "False":
                            silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache/hub/models--owner--name")

    monkeypatch.setattr(bases.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(bases, "resolve_base", lambda base, _revision=None: base)
    monkeypatch.setattr(bases, "refuse_adapter", lambda *_: None)
    with pytest.raises(ModelError) as raised:
        read_config("owner/name", None)
    assert "/cache/hub/models--owner--name" in raised.value.found
    assert "HF_HOME" in raised.value.fix


def test_a_cached_model_makes_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_cached", lambda *_: True)
    monkeypatch.setattr(hub, "_query", lambda *_: pytest.fail("a request was made"))
    hub.find_missing.cache_clear()
    assert hub.find_missing("owner/cached", "model") is None
