"""Training of a reward model: items, batches, stages, the trainer, ExPO."""
