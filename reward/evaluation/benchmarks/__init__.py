"""Benchmarks of reward models, each with its published rule."""
