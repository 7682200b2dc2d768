"""Memory, time and cost of a run before GPUs are rented: the real training step traced without weights."""
