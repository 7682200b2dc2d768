"""A device computes what it should: every bound of `benchmarks/gpu_check.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

FORMATS = [("bfloat16", "none"), ("bfloat16", "nf4"), ("float32", "none")]


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
def test_parity(gpu_base: Path, kind: str, dtype: str, quantization: str) -> None:
    import gpu_check

    lines = list(gpu_check.parity(gpu_base, kind, dtype, quantization))
    gpu_check.free()
    bounded = [line for line in lines if line["most"] is not None]
    assert len(bounded) == 4
    assert not [line for line in bounded if not line["measured"] <= line["most"]]


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
def test_an_update_and_its_plan(gpu_base: Path, kind: str, dtype: str, quantization: str) -> None:
    import gpu_check

    lines = list(gpu_check.update(gpu_base, kind, dtype, quantization))
    gpu_check.free()
    assert lines[0]["measured"] > 0
    assert not [line for line in lines if line["most"] is not None and not line["measured"] <= line["most"]]
