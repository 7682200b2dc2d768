"""A GPU computes what a CPU does: every bound of `benchmarks/gpu_check.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

FORMATS = [("bfloat16", "none"), ("bfloat16", "nf4"), ("float32", "none")]


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
def test_parity(gpu_base: Path, kind: str, dtype: str, quantization: str) -> None:
    import gpu_check

    lines = list(gpu_check.parity(gpu_base, kind, dtype, quantization))
    gpu_check.free()
    bounded = [one for one in lines if one["most"] is not None]
    assert len(bounded) == 4
    assert not [one for one in bounded if not one["measured"] <= one["most"]]


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
def test_an_update_and_its_plan(gpu_base: Path, kind: str, dtype: str, quantization: str) -> None:
    import gpu_check

    lines = list(gpu_check.update(gpu_base, kind, dtype, quantization))
    gpu_check.free()
    assert lines[0]["measured"] > 0
    assert not [one for one in lines if one["most"] is not None and not one["measured"] <= one["most"]]
