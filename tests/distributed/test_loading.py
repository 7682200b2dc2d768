"""Loading for FSDP2 in two processes with gloo: bytes of each process, counted by the kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.plan.memory.weights import NF4_BYTES, base_bytes

WORKER = Path(__file__).parent / "loading_worker.py"
MIB = 2**20
WORDS, WIDTH, INNER, LAYERS = 4096, 1024, 4096, 3
LINEAR = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
NORMS = (2 * LAYERS + 1) * WIDTH
ADAPTERS = 4 * 4 * LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
"""Bytes of the adapters: rank 4, in float32."""
TABLES = 64 * 1024
"""More than the code tables of 4-bit weights and the rotary frequencies take."""
IMPORTS = 12 * MIB
"""Memory that imports, gloo's buffers and the launch take besides tensors; 2 to 7 MiB measured."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 100 MiB in bfloat16, large beside what importing and launching take."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=request.param,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


Launcher = Callable[..., "CompletedProcess[str]"]


def outer(base: Path) -> int:
    """Parameters outside linear layers, and those of the output embedding, which is never in 4 bits."""
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    return WORDS * WIDTH * (1 if tied else 2) + NORMS


def measured(launcher: Launcher, base: Path, folder: Path, quantization: str) -> list[dict[str, float]]:
    """The worker's result of each process."""
    words = [str(WORKER), str(base), str(folder / "out"), quantization]
    result = launcher(words, strategy="fsdp2", folder=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads((folder / f"out-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make glibc return every freed large block to the kernel.

    By default it learns a threshold of up to 32 MiB, and the heaps of gloo's threads keep the freed buffers
    of a collective, which `malloc_trim` does not return: 8 to 26 MiB in one process or the other.
    """
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")


@pytest.mark.slow
@pytest.mark.usefixtures("allocator")
def test_one_process_reads_a_bfloat16_base_and_each_holds_half(
    launcher: Launcher, base: Path, tmp_path: Path
) -> None:
    first, second = measured(launcher, base, tmp_path, "none")
    dtype = {2: "bfloat16", 4: "float32"}[int(first["itemsize"])]  # float32 where bfloat16 is slow
    weights = base_bytes(LINEAR + outer(base), LINEAR, dtype, "none")
    for result in (first, second):
        assert weights <= result["weights"] <= weights + TABLES
        assert result["local"] == pytest.approx((weights + ADAPTERS) / 2, abs=TABLES)
        assert result["sharded"] < result["local"] + IMPORTS
    assert first["loaded"] < weights + IMPORTS
    assert second["loaded"] < IMPORTS  # memory is reserved and not written
    assert first["sum"] == second["sum"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("allocator")
def test_each_process_builds_a_4_bit_base_and_holds_half_and_all_scales(
    launcher: Launcher, base: Path, tmp_path: Path
) -> None:
    """As `loading_bytes` and the strategy `fsdp` of the plan count it: scales are not parameters."""
    results = measured(launcher, base, tmp_path, "nf4")
    dtype = {2: "bfloat16", 4: "float32"}[int(results[0]["itemsize"])]
    weights = base_bytes(LINEAR + outer(base), LINEAR, dtype, "nf4")
    scales = LINEAR * (NF4_BYTES - 0.5)
    for result in results:
        assert weights <= result["weights"] <= weights + TABLES
        assert result["loaded"] < weights + IMPORTS
        assert result["local"] == pytest.approx((weights - scales + ADAPTERS) / 2 + scales, abs=TABLES)
        assert result["sharded"] < result["local"] + IMPORTS
    assert results[0]["sum"] == results[1]["sum"] > 0
