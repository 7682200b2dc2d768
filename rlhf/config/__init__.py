"""Typed configuration: what a run may be told, and nothing of how it runs. No torch here."""
