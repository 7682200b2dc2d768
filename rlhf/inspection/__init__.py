"""The data of a config: counts, drops, lengths, agreement, one example in tokens."""
