"""Policies: rollouts, rewards, updates and evaluation."""
