"""What all trainers share: their arguments, schedules and overrides of transformers' Trainer."""
