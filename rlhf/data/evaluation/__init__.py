"""Files of evaluation: benchmarks, and the question and answer files of judges."""
