"""Where rewards come from: one file a source, their sum, and what an algorithm is given of it."""
