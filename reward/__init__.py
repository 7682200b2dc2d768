"""Reward models: training, evaluation, scoring and serving."""
