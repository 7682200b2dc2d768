"""The plan's figures against what the real trainers take.

Two sides that share no code but the model: `rlhf.plan.trace` adds up tensors without data as operations make them; the real trainer's
`training_step` runs on real tensors under torch's profiler, where the CPU's allocator reports each block it gives out and takes back.
Compared is what an update adds to the model, gradients, activations and temporaries: with the weights, which both
sides know, in the sum the comparison would be easier. A pass without gradient through the tiny model takes little more than one MiB:
there half a MiB is allowed for what kernels take for themselves.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("as_configured")

MIB = 2**20
KINDS = (
    ("bfloat16", "none", False),
    ("bfloat16", "none", True),
    ("float32", "none", False),
    ("bfloat16", "nf4", False),
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "plan_vs_measured.py"
    spec = importlib.util.spec_from_file_location("plan_vs_measured", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)  # its neighbours
        spec.loader.exec_module(module)
    return module


def check(found: list, slack: float) -> None:  # type: ignore[type-arg]
    for one in found:
        allowed = 0.05 * one.measured + (0 if one.name == "update" else slack)
        assert abs(one.planned - one.measured) <= allowed, one
        if one.measured_weights:
            assert one.planned_weights == pytest.approx(one.measured_weights, rel=0.05), one


def tiny_cases() -> list[Any]:
    """Policies in bfloat16 take minutes where a processor only emulates it."""
    return [
        pytest.param(
            *kind,
            command,
            marks=[pytest.mark.slow] if kind[0] == "bfloat16" and command == "compare_policy" else [],
        )
        for kind in KINDS
        for command in ("compare_reward", "compare_policy")
    ]


@pytest.mark.parametrize(("dtype", "quantization", "checkpointing", "command"), tiny_cases())
def test_the_tiny_model(
    benchmark: ModuleType, tiny_base: Path, dtype: str, quantization: str, checkpointing: bool, command: str
) -> None:
    compare = getattr(benchmark, command)
    found = compare(
        str(tiny_base), dtype=dtype, quantization=quantization, checkpointing=checkpointing, tokens=512
    )
    check(found, slack=0.5 * MIB)


@pytest.mark.slow
def test_a_critic_on_the_tiny_model(benchmark: ModuleType, tiny_base: Path) -> None:
    told = {"dtype": "bfloat16", "quantization": "none", "checkpointing": False, "tokens": 512}
    plain, _ = benchmark.compare_policy(str(tiny_base), **told)
    found = benchmark.compare_policy(str(tiny_base), **told, algorithm="ppo")
    check(found, slack=0.5 * MIB)
    # Its gradients lie beside the policy's.
    assert found[0].measured > plain.measured


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare_reward", "compare_policy"])
@pytest.mark.parametrize(("dtype", "quantization", "checkpointing"), KINDS)
def test_the_embedded_model(
    benchmark: ModuleType, command: str, dtype: str, quantization: str, checkpointing: bool
) -> None:
    compare = getattr(benchmark, command)
    found = compare(
        "embedded", dtype=dtype, quantization=quantization, checkpointing=checkpointing, tokens=512
    )
    check(found, slack=0)
