"""What a run leaves on disk and shows on a terminal: run folder, checkpoints, environment, progress."""
