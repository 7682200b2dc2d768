"""Evaluation of reward models: benchmarks, calibration, win rates, the paper's table."""
