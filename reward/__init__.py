"""Scores: annotate, learn, check, serve."""
