"""How rewards become an update: one file an algorithm."""
