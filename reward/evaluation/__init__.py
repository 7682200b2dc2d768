"""How good a reward model is: benchmarks, calibration, win rates, the paper's table."""
