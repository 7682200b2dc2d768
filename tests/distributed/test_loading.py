"""Loading for FSDP2 in two processes with gloo: bytes of each process, counted by the kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORKER = Path(__file__).parent / "loading_worker.py"
MIB = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 100 MiB in bfloat16, large beside what importing and launching take."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


Launcher = Callable[..., "CompletedProcess[str]"]


def measured(launcher: Launcher, base: Path, folder: Path) -> list[dict[str, float]]:
    """The worker's result of each process."""
    words = [str(WORKER), str(base), str(folder / "out")]
    result = launcher(words, strategy="fsdp2", folder=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads((folder / f"out-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_one_process_reads_a_bfloat16_base_and_each_holds_half(
    launcher: Launcher, base: Path, tmp_path: Path
) -> None:
    first, second = measured(launcher, base, tmp_path)
    weights = first["weights"]
    assert weights == second["weights"] > 90 * MIB
    assert second["loaded"] < 0.25 * weights  # memory is reserved and not written
    for result in (first, second):
        assert result["local"] <= 0.51 * weights + MIB
        assert result["sharded"] < 0.9 * weights  # half, adapters, and what gloo takes
    assert first["sum"] == pytest.approx(second["sum"], rel=1e-6)
