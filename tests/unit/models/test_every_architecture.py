"""What each model family supports, on tiny random models; writes the table of `docs/models.md`.

To update the table: python tests/unit/models/test_every_architecture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from rlhf.adapters.merging import merge
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import ModelError
from rlhf.models import bases
from rlhf.models.loading import load_causal, load_classifier, lora_config, with_adapter

IDS = torch.arange(10, 30)[None]
DOCS = Path(__file__).parents[3] / "docs" / "models.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADER = (
    "| family | policy | reward model | layers with an adapter (`all-linear`) |\n| --- | --- | --- | --- |"
)
SHORT = {
    "scaled_dot_product_attention": "no sdpa attention",
    "changes its logits": "changes its logits: {}",
    "for sequence classification": "transformers has no classifier",
    "samples experts": "its router samples",
    "encoder": "an encoder",
    "no access to the hidden states": "no access to hidden states",
}
"""A piece of an error: what the table says."""


def attempt(folder: Path, attributes: list[str] | None) -> tuple[str, list[str]]:
    """`yes` or why not, and what a run would say of the base."""
    try:
        notes = bases.examine(
            bases.read_config(str(folder), None),
            str(folder),
            revision=None,
            quantization="none",
            adapter={"targets": "all-linear"},
            attributes=attributes,
        )
    except ModelError as error:
        why = next(words for piece, words in SHORT.items() if piece in error.found)
        return "no: " + why.format(error.found.rpartition("(")[2].removesuffix(").")), []
    return "yes", notes


def row(name: str, folder: Path) -> str:
    """A family's line of the table."""
    policy, notes = attempt(folder, None)
    reward, more = attempt(folder, ["reward"])
    layers = "all linear layers" if "yes" in (policy, reward) else ""
    for note in [*notes, *more]:
        layers = "outside the experts: " + note.split("targets ")[1].split(", not")[0]
    return f"| {name} | {policy} | {reward} | {layers} |"


def table() -> str:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row(name, architectures.build(name, Path(folder) / name))
            for name in sorted(architectures.FAMILIES)
        ]
    return "\n".join([BEGIN, "", HEADER, *rows, "", END])


def written() -> str:
    text = DOCS.read_text("utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def test_the_table_in_the_docs_is_what_the_code_does() -> None:
    assert written() == table()


ACCEPTED = [line.split(" | ")[0].removeprefix("| ") for line in written().splitlines() if "| yes |" in line]


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_loads_trains_and_merges(name: str, tmp_path: Path) -> None:
    base = architectures.build(name, tmp_path / "base")
    can_write = attempt(base, None)[0] == "yes"
    settings: dict[str, Any] = {"revision": None, "dtype": "float32", "quantization": "none"}
    if can_write:
        model: Any = load_causal(str(base), **settings)
    else:
        model = load_classifier(str(base), attributes=["reward"], pad_id=3, **settings)
        torch.nn.init.normal_(model.score.weight)
    adapter = lora_config(rank=2, alpha=4, dropout=0.0, targets="all-linear", head=not can_write)
    wrapped = with_adapter(model, adapter)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            drawn = torch.empty(parameter.shape).normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
            parameter.copy_(drawn)
    wrapped.train()(input_ids=IDS).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=IDS).logits
    if not can_write:
        return
    folder = tmp_path / "adapter"
    wrapped.save_pretrained(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    stored = Adapter("policy", LoraConfig.from_pretrained(folder), weights, {}, folder)
    merged = merge(wrapped.unload(), stored, "float32")
    with torch.no_grad():
        logits = merged(input_ids=IDS).logits
        without = load_causal(str(base), **settings).eval()(input_ids=IDS).logits
    assert torch.allclose(logits, expected, atol=1e-3 * expected.abs().max().item())
    assert not torch.allclose(without, expected, atol=1e-2 * expected.abs().max().item())


if __name__ == "__main__":
    before = DOCS.read_text("utf-8")
    DOCS.write_text(before.replace(written(), table()), "utf-8")
