"""Evaluation of policies: held-out prompts, comparison of two systems, answer files for judges."""
