"""The plan's memory against that of the real trainers.

`rlhf.plan.memory.trace` adds up fake tensors; the trainer's `training_step` runs on real ones under torch's
profiler, which reports each block that the CPU allocator allocates and frees. The two share only the model.
Compared are the bytes that an update adds to the weights: gradients, activations and temporaries. Passes
without gradient take about 1 MiB on the tiny model, so they may differ by half a MiB for the kernels'
workspaces.
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


def check(comparisons: list, slack: float) -> None:  # type: ignore[type-arg]
    for comparison in comparisons:
        allowed = 0.05 * comparison.measured + (0 if comparison.name == "update" else slack)
        assert abs(comparison.planned - comparison.measured) <= allowed, comparison
        if comparison.measured_weights:
            assert comparison.planned_weights == pytest.approx(comparison.measured_weights, rel=0.05), (
                comparison
            )


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
    comparisons = compare(
        str(tiny_base), dtype=dtype, quantization=quantization, checkpointing=checkpointing, tokens=512
    )
    check(comparisons, slack=0.5 * MIB)


@pytest.mark.slow
def test_a_critic_on_the_tiny_model(benchmark: ModuleType, tiny_base: Path) -> None:
    settings = {"dtype": "bfloat16", "quantization": "none", "checkpointing": False, "tokens": 512}
    plain, _ = benchmark.compare_policy(str(tiny_base), **settings)
    comparisons = benchmark.compare_policy(str(tiny_base), **settings, algorithm="ppo")
    check(comparisons, slack=0.5 * MIB)
    # Its gradients lie beside the policy's.
    assert comparisons[0].measured > plain.measured


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare_reward", "compare_policy"])
@pytest.mark.parametrize(("dtype", "quantization", "checkpointing"), KINDS)
def test_the_embedded_model(
    benchmark: ModuleType, command: str, dtype: str, quantization: str, checkpointing: bool
) -> None:
    compare = getattr(benchmark, command)
    comparisons = compare(
        "embedded", dtype=dtype, quantization=quantization, checkpointing=checkpointing, tokens=512
    )
    check(comparisons, slack=0)
