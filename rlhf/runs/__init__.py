"""Run folder, checkpoints, inputs, environment and progress of a run."""
