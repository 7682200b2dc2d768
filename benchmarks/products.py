"""Matrix products of this machine in bfloat16 and float32: where the first is the slower one, bases are
computed in the second.

    python benchmarks/products.py

The rule is in `rlhf/core/formats.py`; this measures what it is worth here.
"""

from __future__ import annotations

from measuring import arguments, line, matmul_peak, parse, write_result

from rlhf.core.formats import slow_bfloat16


def main() -> None:
    """Measure, print, write."""
    options = parse(arguments(__doc__))
    peaks = {dtype: matmul_peak(options.clock, dtype) for dtype in ("bfloat16", "float32")}
    lines = [line(f"Products in {dtype}", peak, "GFLOP/s") for dtype, peak in peaks.items()]
    lines.append(line("bfloat16 beside float32", peaks["bfloat16"] / peaks["float32"], "x"))
    write_result(options, "products", lines, {"slow_bfloat16": slow_bfloat16()})


if __name__ == "__main__":
    main()
