"""Rollouts by vLLM in the trainer's process."""
