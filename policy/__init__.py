"""Behaviour: sample, score, stay close, improve."""
