"""Several processes: the process group, sharded weights, and the trainer mix-in that both trainers share."""
